# A stateless pair, two VIPs, each node backs the other.
service "nginx" {
  nodes = ["a", "b"]
  run   = "everywhere"

  process "nginx" {
    systemd = "nginx.service"
  }
}

service "web1" {
  nodes    = ["a", "b"]
  requires = ["nginx"]
  failback = "automatic"

  vip "10.0.0.61/24" {}
}

service "web2" {
  nodes    = ["b", "a"]
  requires = ["nginx"]
  failback = "automatic"

  vip "10.0.0.62/24" {}
}
