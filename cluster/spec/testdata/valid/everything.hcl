# Every key of the language, none with its default.
cluster {
  profile          = "fast"
  lease            = "400ms"
  max_failovers    = 5
  failovers_within = "1h"
}

node "a" {
  site     = "paris"
  capacity = 200
}

node "b" {
  vote = false
}

witness "w" {
  site = "lyon"
}

alert "all" {
  webhook = "https://example.org/alarm"
}

service "proxy" {
  nodes = ["a", "b"]
  run   = "everywhere"

  process "nginx" {
    systemd = "nginx.service"
  }
}

service "batch" {
  nodes = ["b"]
}

service "db" {
  nodes           = ["a", "b"]
  failover        = "manual"
  failback        = "automatic"
  site_failover   = "automatic"
  failback_after  = "5m"
  max_loss        = "2s"
  approvers       = ["alice", "bob"]
  requires        = ["proxy"]
  apart           = ["batch"]
  same_files      = ["/etc/nginx/nginx.conf"]
  priority        = 200
  load            = 40
  healthy         = 2
  cold_start_wait = "2m"
  alone_ack       = "memory"
  witness_lost    = "hold"
  fence           = "try"

  vip "10.0.0.50/24" {
    interface = "eth0"
    mac       = "virtual"
    announce  = "ready"
    sites     = ["paris"]
  }

  vip "2001:db8::50/64" {}

  volume "data" {
    path         = "/srv/data"
    backing      = "/srv/bytes"
    mode         = "async"
    max_lag      = "5s"
    journal_size = "2GiB"
    resync_rate  = "50MiB"
  }

  remote "lyon" {
    mode     = "async"
    max_lag  = "1m"
    max_rate = "10MiB"
    compress = true
  }

  memory "cache" {
    size       = "64MiB"
    checkpoint = "timed"
    every      = "100ms"
  }

  process "app" {
    start         = ["/usr/bin/app", "--name", "costs $${5}", "a \"b\" \\ c"]
    stop          = ["/usr/bin/app", "--stop"]
    stop_signal   = "QUIT"
    stop_timeout  = "1m30s"
    start_timeout = "5m"
    ready         = "notify"
    standby       = "hot"
    promote       = ["/usr/bin/app", "--promote"]
    user          = "app"
    group         = "www-data"
    dir           = "/srv"
    env           = { LANG = "C", "PORT" = "80" }
    memory_max    = "4GiB"
    files_max     = 65536
  }

  process "agent" {
    ocf    = "heartbeat:pgsql"
    params = { pgctl = "/usr/bin/pg_ctl" }
  }

  check "tcp" {
    tcp      = ":5432"
    every    = "500ms"
    timeout  = "200ms"
    failures = 5
    from     = ["active", "standby"]

    on_failure {
      restarts = 0
      then     = "ignore"
    }
  }

  check "http" {
    http = "http://127.0.0.1:8080/health"
    for  = "30s"
  }

  check "postgres" { postgres = "host=/run/postgresql user=postgres" }
  check "mysql" { mysql = "check@unix(/run/mysqld/mysqld.sock)/" }
  check "dns" { dns = "example.org@127.0.0.1" }
  check "smtp" { smtp = "127.0.0.1:25" }
  check "rpc" { rpc = "127.0.0.1:111" }
  check "ping" { ping = "10.0.0.1" }
  check "exec" { exec = ["/usr/local/bin/check", "-v"] }
  check "systemd" { systemd = "app.service" }
  check "ocf" { ocf = "heartbeat:pgsql" }
  check "heartbeat" { heartbeat = "app" }

  on_failure {
    restarts = 1
    within   = "5m"
    backoff  = "45s"
    then     = "stop"
  }

  hook "tell" {
    at      = "after-start"
    exec    = ["/usr/local/bin/tell", "up"]
    timeout = "3s"
  }

  alert "page" {
    exec     = ["/usr/local/bin/page"]
    severity = "crit"
    repeat   = "10m"
  }

  alert "mail" { mail = "oncall@example.org" }
  alert "log" { syslog = "udp://10.0.0.9:514" }
}
