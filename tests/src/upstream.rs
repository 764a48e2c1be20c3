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
    /// the body, `/v1/moved` with a redirect to itself by another name. `/openai/` is an API of models that speaks as
    /// OpenAI's does: a list of models, embeddings, and a chat whose answer is one event, and a second one when there is a
    /// file `/go`.
    #[track_caller]
    pub fn start(home: &Home, authorization: &str) -> Upstream {
        let dir = tempfile::tempdir().expect("a directory can be made");
        make_certificates(dir.path()).unwrap_or_else(|e| panic!("no certificates: {e:#}"));
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).expect("it was just made");
        let ca = home.write("upstream-ca.crt", read("ca.crt"));
        let script = format!(
            "cat > /etc/nginx/server.crt <<'END'\n{}END\ncat > /etc/nginx/server.key <<'END'\n{}END\n\
             cat > /etc/nginx/nginx.conf <<'END'\n{}END\ncat > /srv/chat.pl <<'END'\n{CHAT}END\n",
            read("server.crt"),
            read("server.key"),
            configuration(authorization),
        );
        let script = home.write("upstream.sh", script);
        let image = home.image("services");
        let create = ["create", WORKSPACE, "--image", &image, "-p", "443", "--setup-file"];
        home.microagent(create)
            .arg(&script)
            .args(["--service-command", "perl /srv/chat.pl & exec nginx -g 'daemon off;'"])
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

/// Locations of the API of models.
const API: &str = r#"
location = /openai/models { default_type application/json;
  return 200 '{"object":"list","data":[{"id":"small","object":"model","created":1,"owned_by":"test"}]}'; }
location = /openai/embeddings { default_type application/json;
  return 200 '{"object":"list","model":"small","data":[{"object":"embedding","index":0,"embedding":[0.25,-1]}],
    "usage":{"prompt_tokens":1,"total_tokens":1}}'; }
location = /openai/chat/completions { proxy_pass http://127.0.0.1:8080; proxy_buffering off; proxy_read_timeout 300s; }
"#;

/// Answers each request with two events of a chat, the second one when there is a file `/go`.
const CHAT: &str = r#"
use IO::Socket::INET;
my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 8080, Listen => 8, ReuseAddr => 1) or die;
$SIG{CHLD} = 'IGNORE';
while (my $client = $listener->accept) {
    if (fork) { close $client; next }
    my $length = 0;
    while (my $line = <$client>) {
        $length = $1 if $line =~ /^content-length: *(\d+)/i;
        last if $line =~ /^\r?$/;
    }
    read($client, my $body, $length);
    $client->autoflush(1);
    my $event = sub {
        my ($text) = @_;
        print $client 'data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"small","choices":',
            '[{"index":0,"delta":{"role":"assistant","content":"', $text, '"},"finish_reason":null}]}', "\n\n";
    };
    print $client "HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
    $event->($body =~ /"stream": *true/ ? 'first' : 'no stream');
    until (-e '/go') { select undef, undef, undef, 0.1 }
    $event->('second');
    print $client "data: [DONE]\n\n";
    exit;
}
"#;

fn configuration(authorization: &str) -> String {
    format!(
        "events {{}}\n\
         http {{\n\
         access_log /var/log/nginx/access.log;\n\
         server {{\n\
         listen 443 ssl; ssl_certificate server.crt; ssl_certificate_key server.key;\n\
         default_type text/plain; client_max_body_size 0;\n\
         if ($http_authorization != \"{authorization}\") {{ return 401 \"no credential\\n\"; }}\n\
         {API}\
         location = /v1/moved {{ return 302 https://127.0.0.1/v1/elsewhere; }}\n\
         location /v1/ {{ return 200 \"$request_method $request_uri $http_host $content_length\\n\"; }}\n\
         }}\n\
         }}\n"
    )
}
