//! A registry that serves an image and does wrong what a test asks it to. Speaks HTTP/1.1, one request per
//! connection.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use microagent_image::Digest;
use serde_json::json;

use super::layout::Layer;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Longest that a connection may make no progress; a test that needs longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    /// Lower-case names.
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
    /// How many requests for this path came before.
    pub(crate) earlier: usize,
}

impl Request {
    /// Where the range begins that is asked for.
    pub(crate) fn range_start(&self) -> u64 {
        let range = self.headers.get("range").and_then(|range| range.strip_prefix("bytes="));
        range.and_then(|range| range.trim_end_matches('-').parse().ok()).unwrap_or(0)
    }

    pub(crate) fn is_blob(&self, digest: &Digest) -> bool {
        self.path.ends_with(&format!("/blobs/{digest}"))
    }
}

/// What to do with a request.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    /// What is right.
    Serve,
    /// Other bytes of the same length.
    Garble,
    /// So many bytes of the answer's body, then the connection breaks.
    BreakAfter(usize),
    /// So many bytes of the answer's body, then nothing until [`Faulty::release`].
    StallAfter(usize),
    /// The whole blob whatever range was asked for.
    IgnoreRange,
    /// The right bytes, and then more and more.
    Endless,
    /// Another status with a body.
    Status(u16, String),
    /// 200 with a body of JSON.
    Json(String),
    /// 429 with a `Retry-After`.
    Later(&'static str),
    /// 307 to another place.
    Redirect(String),
    /// 401 with a challenge.
    Challenge(String),
}

/// What a faulty registry decides by.
type Decide = dyn Fn(&Request) -> Act + Send + Sync;

struct Shared {
    content: HashMap<String, (&'static str, Vec<u8>)>,
    decide: Box<Decide>,
    requests: Mutex<Vec<Request>>,
    /// Body bytes sent per path.
    sent: Mutex<HashMap<String, u64>>,
    released: Mutex<bool>,
    release: Condvar,
}

/// A running faulty registry. Its threads end with the process.
pub(crate) struct Faulty {
    shared: Arc<Shared>,
    pub(crate) address: String,
    pub(crate) manifest: Digest,
}

impl Faulty {
    /// Serves the image `x:latest` with these layers.
    pub(crate) fn start(
        layers: &[Layer],
        decide: impl Fn(&Request) -> Act + Send + Sync + 'static,
    ) -> Faulty {
        let sizes: Vec<u64> = layers.iter().map(|layer| layer.bytes.len() as u64).collect();
        Self::start_announcing(layers, &sizes, decide)
    }

    /// The same, with a manifest that announces other layer sizes.
    pub(crate) fn start_announcing(
        layers: &[Layer],
        sizes: &[u64],
        decide: impl Fn(&Request) -> Act + Send + Sync + 'static,
    ) -> Faulty {
        let mut content = HashMap::new();
        let mut blob = |bytes: &[u8]| {
            let digest = Digest::of(bytes);
            content.insert(format!("/v2/x/blobs/{digest}"), ("application/octet-stream", bytes.to_vec()));
            digest
        };
        let diff_ids: Vec<&Digest> = layers.iter().map(|layer| &layer.diff_id).collect();
        let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": diff_ids}});
        let config = serde_json::to_vec(&config).unwrap();
        let entry = |(layer, size): (&Layer, &u64)| json!({"mediaType": layer.media_type, "digest": layer.digest(), "size": size});
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": blob(&config), "size": config.len(),
            },
            "layers": layers.iter().zip(sizes).map(entry).collect::<Vec<_>>(),
        });
        for layer in layers {
            blob(&layer.bytes);
        }
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let digest = Digest::of(&manifest);
        for name in ["latest".to_owned(), digest.to_string()] {
            content.insert(format!("/v2/x/manifests/{name}"), (MANIFEST, manifest.clone()));
        }
        let shared = Arc::new(Shared {
            content,
            decide: Box::new(decide),
            requests: Mutex::default(),
            sent: Mutex::default(),
            released: Mutex::new(false),
            release: Condvar::new(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let accepting = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = accepting.clone();
                thread::spawn(move || {
                    // A client that goes away does not matter.
                    let _ = shared.answer(&stream);
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
        });
        Faulty { shared, address, manifest: digest }
    }

    pub(crate) fn reference(&self) -> String {
        format!("{}/x", self.address)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// Body bytes of a blob that were sent, over all requests.
    pub(crate) fn sent(&self, digest: &Digest) -> u64 {
        self.shared.sent.lock().unwrap().get(&format!("/v2/x/blobs/{digest}")).copied().unwrap_or(0)
    }

    /// Resumes stalled connections.
    pub(crate) fn release(&self) {
        *self.shared.released.lock().unwrap() = true;
        self.shared.release.notify_all();
    }
}

impl Shared {
    fn answer(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        // As servers do that are spoken to in TLS.
        let Some(request) = self.read(stream)? else { return respond(stream, 400, "text/plain", &[], b"") };
        let act = (self.decide)(&request);
        let found = self.content.get(&request.path);
        match act {
            Act::Status(status, body) => respond(stream, status, "application/json", &[], body.as_bytes()),
            Act::Json(body) => respond(stream, 200, "application/json", &[], body.as_bytes()),
            Act::Later(when) => respond(stream, 429, "text/plain", &[format!("Retry-After: {when}")], b""),
            Act::Redirect(to) => respond(stream, 307, "text/plain", &[format!("Location: {to}")], b""),
            Act::Challenge(challenge) => {
                respond(stream, 401, "text/plain", &[format!("WWW-Authenticate: {challenge}")], b"")
            }
            _ => match found {
                Some((kind, bytes)) => self.serve(stream, &request, &act, kind, bytes),
                None if request.path == "/v2/" => respond(stream, 200, "application/json", &[], b"{}"),
                None => respond(stream, 404, "application/json", &[], b"{}"),
            },
        }
    }

    fn read(&self, stream: &TcpStream) -> io::Result<Option<Request>> {
        let mut reader = BufReader::new(stream);
        let mut first = [0];
        if reader.read(&mut first)? == 0 || !first[0].is_ascii_uppercase() {
            return Ok(None);
        }
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = format!("{}{line}", char::from(first[0]));
        let mut words = line.split_whitespace();
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            match line.trim_end().split_once(':') {
                Some((name, value)) => headers.insert(name.to_lowercase(), value.trim().to_owned()),
                None => break,
            };
        }
        let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut body = String::new();
        reader.take(length).read_to_string(&mut body)?;
        let mut requests = self.requests.lock().unwrap();
        let earlier = requests.iter().filter(|earlier: &&Request| earlier.path == path).count();
        let request = Request { method: method.to_owned(), path: path.to_owned(), headers, body, earlier };
        requests.push(request.clone());
        Ok(Some(request))
    }

    fn serve(
        &self,
        stream: &TcpStream,
        request: &Request,
        act: &Act,
        kind: &str,
        bytes: &[u8],
    ) -> io::Result<()> {
        let start = match act {
            Act::IgnoreRange => 0,
            _ => usize::try_from(request.range_start()).unwrap(),
        };
        let garbled: Vec<u8>;
        let body = match act {
            Act::Garble => {
                garbled = bytes.iter().map(|byte| byte ^ 0xff).collect();
                &garbled[start..]
            }
            _ => &bytes[start..],
        };
        let mut writer = stream;
        let (status, range) = match start {
            0 => ("200 OK", String::new()),
            start => {
                let (last, size) = (bytes.len() - 1, bytes.len());
                ("206 Partial Content", format!("Content-Range: bytes {start}-{last}/{size}\r\n"))
            }
        };
        let length = match act {
            Act::Endless => String::new(),
            _ => format!("Content-Length: {}\r\n", body.len()),
        };
        write!(
            writer,
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{range}{length}Connection: close\r\n\r\n"
        )?;
        let first = match act {
            Act::BreakAfter(count) | Act::StallAfter(count) => &body[..body.len().min(*count)],
            _ => body,
        };
        self.send(stream, request, first)?;
        match act {
            Act::StallAfter(_) => {
                let released = self.released.lock().unwrap();
                let (released, _) =
                    self.release.wait_timeout_while(released, PATIENCE, |done| !*done).unwrap();
                drop(released);
                self.send(stream, request, &body[first.len()..])
            }
            Act::Endless => loop {
                self.send(stream, request, &[b'x'; 65536])?;
            },
            _ => Ok(()),
        }
    }

    fn send(&self, mut stream: &TcpStream, request: &Request, bytes: &[u8]) -> io::Result<()> {
        stream.write_all(bytes)?;
        *self.sent.lock().unwrap().entry(request.path.clone()).or_default() += bytes.len() as u64;
        Ok(())
    }
}

fn respond(
    mut stream: &TcpStream,
    status: u16,
    kind: &str,
    headers: &[String],
    body: &[u8],
) -> io::Result<()> {
    write!(stream, "HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\n")?;
    for header in headers {
        write!(stream, "{header}\r\n")?;
    }
    write!(stream, "Content-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
    stream.write_all(body)
}
