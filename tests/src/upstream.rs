//! An HTTPS server that wants a credential: Debian's nginx in a guest of its own, at a published port of this host.

use std::fs;
use std::path::PathBuf;

use crate::Home;
use crate::registry::make_certificates;

/// The workspace that it runs in.
const WORKSPACE: &str = "upstream";

/// A running server. It is deleted with [`Upstream::delete`].
#[derive(Debug)]
pub struct Upstream {
    /// `https://localhost:PORT`.
    pub url: String,
    /// The certificate of its authority.
    pub ca: PathBuf,
}

impl Upstream {
    /// Starts one that answers requests with this `Authorization` header: `/v1/` with method, target, host and length of
    /// the body, `/v1/moved` with a redirect to itself by another name.
    #[track_caller]
    pub fn start(home: &Home, authorization: &str) -> Upstream {
        let dir = tempfile::tempdir().expect("a directory can be made");
        make_certificates(dir.path()).unwrap_or_else(|e| panic!("no certificates: {e:#}"));
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).expect("it was just made");
        let ca = home.write("upstream-ca.crt", read("ca.crt"));
        let script = format!(
            "cat > /etc/nginx/server.crt <<'END'\n{}END\ncat > /etc/nginx/server.key <<'END'\n{}END\n\
             cat > /etc/nginx/nginx.conf <<'END'\n{}END\n",
            read("server.crt"),
            read("server.key"),
            configuration(authorization),
        );
        let script = home.write("upstream.sh", script);
        let image = home.image("services");
        let create = ["create", WORKSPACE, "--image", &image, "-p", "443", "--setup-file"];
        home.microagent(create)
            .arg(&script)
            .args(["--service-command", "exec nginx -g 'daemon off;'"])
            .success();
        let started = home.microagent(["start", WORKSPACE, "--json"]).success().json();
        let port = &started["port_forwards"][0]["host_port"];
        Upstream { url: format!("https://localhost:{port}"), ca }
    }

    /// Ends and removes it.
    #[track_caller]
    pub fn delete(self, home: &Home) {
        home.microagent(["delete", WORKSPACE, "--force", "--yes"]).success();
    }
}

fn configuration(authorization: &str) -> String {
    format!(
        "events {{}}\n\
         http {{\n\
         access_log /var/log/nginx/access.log;\n\
         server {{\n\
         listen 443 ssl; ssl_certificate server.crt; ssl_certificate_key server.key;\n\
         default_type text/plain; client_max_body_size 0;\n\
         if ($http_authorization != \"{authorization}\") {{ return 401 \"no credential\\n\"; }}\n\
         location = /v1/moved {{ return 302 https://127.0.0.1/v1/elsewhere; }}\n\
         location /v1/ {{ return 200 \"$request_method $request_uri $http_host $content_length\\n\"; }}\n\
         }}\n\
         }}\n"
    )
}
