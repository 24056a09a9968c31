# PostgreSQL. On a bare cluster this is the whole file.
service "db" {
  nodes = ["a", "b"]

  vip "10.0.0.50/24" {}

  volume "data" {
    path = "/var/lib/postgresql/15/main"
    mode = "sync-on-fsync"
  }

  process "postgres" {
    start         = ["/usr/lib/postgresql/15/bin/postgres", "-D", "/var/lib/postgresql/15/main"]
    user          = "postgres"
    stop_signal   = "INT"
    stop_timeout  = "60s"
    start_timeout = "10m"
  }

  check "sql" {
    postgres = "host=/run/postgresql user=postgres"
  }
}
