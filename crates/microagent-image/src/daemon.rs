//! Images of Docker or podman on this machine, asked for over the socket of its API.
//!
//! The API's `get` answers with what `docker save` writes. The image's ID is asked for first, and what is here under
//! that ID is not transferred again. Nothing is sent that changes anything there.
//!
//! # Source
//! Docker Engine API v1.41, "Inspect an image", "Export an image"; podman-system-service(1).

use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, Response, StatusCode};
use serde::Deserialize;

use crate::archive::Archive;
use crate::blocking;
use crate::environment::Environment;
use crate::error::ImageError;
use crate::manifest::printable;
use crate::network::{self, NetworkOptions};
use crate::options::{Origin, PullPolicy};
use crate::progress::ImageEvent;
use crate::record::{self, ImageRecord};
use crate::reference::DaemonReference;
use crate::store::{Image, ImageStore, Request};

/// Largest answer about an image.
const ANSWER_LIMIT: usize = 4 * 1024 * 1024;
/// Longest that a daemon may take to say what an image is.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// Longest that a daemon may be silent while it packs an image: it may compress layers before it sends any.
const SILENCE: Duration = Duration::from_secs(10 * 60);
/// Progress is told each time so much has arrived.
const REPORT_BYTES: u64 = 1024 * 1024;
const _: () = assert!(ANSWER_DEADLINE.as_secs() <= SILENCE.as_secs());

/// What a daemon says of an image.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: String,
    #[serde(default)]
    size: u64,
}

/// A daemon that answers.
struct Daemon {
    http: Client,
    socket: PathBuf,
}

impl ImageStore {
    /// Gives an image that Docker or podman has, under a full reference.
    pub(crate) async fn ensure_daemon(
        &self,
        request: &Request<'_>,
        wanted: &DaemonReference,
        resolved: String,
    ) -> Result<Image, ImageError> {
        let Request { options, progress, cancel, .. } = *request;
        self.cache.prepare()?;
        let lease = self.cache.join(&request.waiting()).await?;
        if options.policy == PullPolicy::Never {
            let record = self.recorded(&resolved, &options.platform)?;
            return Ok(Image::new(request.reference, &self.cache, record, Origin::Cache, lease));
        }
        progress.event(ImageEvent::Resolving { reference: resolved.clone() });
        let find = find(&self.environment, &options.network, wanted);
        let (daemon, inspected) = cancel.run_until_cancelled(find).await.ok_or(ImageError::Cancelled)??;
        if let Some((path, record)) = ImageRecord::find(&self.cache, &resolved, &options.platform)?
            && record.source_id.as_ref() == Some(&inspected.id)
            && record.has_disk(&self.cache)
        {
            record::touch(&path);
            return Ok(Image::new(request.reference, &self.cache, record, Origin::Cache, lease));
        }
        drop(lease);
        let file = cancel
            .run_until_cancelled(daemon.export(request, wanted, &inspected, &self.cache.scratch()))
            .await
            .ok_or(ImageError::Cancelled)??;
        let (scratch, platform) = (self.cache.scratch(), options.platform.clone());
        let path = daemon.socket.clone();
        let open = move |meter: &blocking::Meter| {
            let images = Archive::of(file, path.clone(), &scratch, meter)?.images(&platform, meter)?;
            let image = images.into_iter().next();
            image.ok_or_else(|| ImageError::archive(&path, crate::archive::ArchiveError::Empty))
        };
        let found = blocking::run(cancel, |_| {}, open).await?;
        let image = self.take_as(request, &Arc::new(found.image), Origin::Daemon, resolved.clone()).await?;
        if let Some((_, record)) = ImageRecord::find(&self.cache, &resolved, &options.platform)? {
            ImageRecord { source_id: Some(inspected.id), ..record }.save(&self.cache)?;
        }
        Ok(image)
    }
}

/// The sockets that are asked, in their order.
fn sockets(environment: &Environment) -> Result<Vec<PathBuf>, ImageError> {
    if let Some(address) = &environment.docker_host {
        let socket = address.strip_prefix("unix://").filter(|path| path.starts_with('/'));
        let socket = socket.ok_or_else(|| ImageError::DaemonAddress { address: printable(address) })?;
        return Ok(vec![PathBuf::from(socket)]);
    }
    let own = environment.runtime_dir.iter();
    let own = own.flat_map(|dir| [dir.join("docker.sock"), dir.join("podman/podman.sock")]);
    let system = ["/var/run/docker.sock", "/run/podman/podman.sock"].map(PathBuf::from);
    Ok(own.chain(system).collect())
}

/// Asks one daemon after the other.
async fn find(
    environment: &Environment,
    options: &NetworkOptions,
    wanted: &DaemonReference,
) -> Result<(Daemon, Inspected), ImageError> {
    let sockets = sockets(environment)?;
    let (mut asked, mut failure) = (Vec::new(), None);
    for socket in sockets.iter().filter(|socket| socket.exists()) {
        let daemon = Daemon::new(socket, options);
        match daemon.inspect(wanted).await {
            Ok(Some(inspected)) => return Ok((daemon, inspected)),
            Ok(None) => asked.push(socket.clone()),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    let reference = wanted.name.clone();
    match failure {
        // One that answers and has it not says more than one that does not answer.
        Some(error) if asked.is_empty() => Err(error),
        _ if asked.is_empty() => Err(ImageError::NoDaemon { tried: sockets }),
        _ => Err(ImageError::NotInDaemon { reference, sockets: asked }),
    }
}

impl Daemon {
    fn new(socket: &Path, options: &NetworkOptions) -> Daemon {
        let http = network::socket_client(socket, options, SILENCE);
        Daemon { http, socket: socket.to_owned() }
    }

    fn failed(&self, source: reqwest::Error) -> ImageError {
        ImageError::Daemon { socket: self.socket.clone(), source: source.without_url() }
    }

    async fn get(&self, path: &str) -> Result<Response, ImageError> {
        // The host in the address is for the header only.
        self.http.get(format!("http://localhost{path}")).send().await.map_err(|error| self.failed(error))
    }

    fn unexpected(&self, what: &str, status: StatusCode) -> ImageError {
        ImageError::Response {
            registry: self.socket.display().to_string(),
            what: what.to_owned(),
            status: status.as_u16(),
            detail: String::new(),
            retry_after: None,
        }
    }

    /// What the daemon has under a name, if anything.
    async fn inspect(&self, wanted: &DaemonReference) -> Result<Option<Inspected>, ImageError> {
        let what = || format!("image `{}`", wanted.name);
        let ask = async {
            let mut response = self.get(&format!("/images/{}/json", wanted.name)).await?;
            match response.status() {
                StatusCode::NOT_FOUND => return Ok(None),
                StatusCode::OK => {}
                status => return Err(self.unexpected(&what(), status)),
            }
            let mut bytes = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(|error| self.failed(error))? {
                if bytes.len() + chunk.len() > ANSWER_LIMIT {
                    return Err(ImageError::TooLarge { what: what(), limit: ANSWER_LIMIT as u64 });
                }
                bytes.extend_from_slice(&chunk);
            }
            let inspected: Inspected = serde_json::from_slice(&bytes)
                .map_err(|_| self.protocol("it does not say what the image is"))?;
            Ok(Some(inspected))
        };
        let late = || self.protocol("it does not answer");
        tokio::time::timeout(ANSWER_DEADLINE, ask).await.unwrap_or_else(|_| Err(late()))
    }

    fn protocol(&self, detail: &str) -> ImageError {
        ImageError::Protocol { registry: self.socket.display().to_string(), detail: detail.to_owned() }
    }

    /// Receives the image as an archive, into a temporary file without a name.
    async fn export(
        &self,
        request: &Request<'_>,
        wanted: &DaemonReference,
        inspected: &Inspected,
        scratch: &Path,
    ) -> Result<File, ImageError> {
        let inside = scratch.join("archive");
        let failed = |source: io::Error| ImageError::file("write into", &inside, source);
        let limit = request.options.limits.max_unpacked_bytes;
        let mut response = self.get(&format!("/images/{}/get", wanted.name)).await?;
        if response.status() != StatusCode::OK {
            return Err(self.unexpected(&format!("image `{}`", wanted.name), response.status()));
        }
        request.progress.event(ImageEvent::Pulling {
            reference: wanted.name.clone(),
            layers: 1,
            bytes_total: inspected.size,
        });
        let digest = printable(&inspected.id);
        let mut file = tempfile::tempfile_in(scratch).map_err(failed)?;
        let (mut received, mut told) = (0, 0);
        while let Some(chunk) = response.chunk().await.map_err(|error| self.failed(error))? {
            received += chunk.len() as u64;
            if received > limit {
                return Err(ImageError::TooLarge { what: format!("image `{}`", wanted.name), limit });
            }
            file.write_all(&chunk).map_err(failed)?;
            if received - told >= REPORT_BYTES {
                told = received;
                let total = inspected.size.max(received);
                let event = ImageEvent::LayerProgress { digest: digest.clone(), done: received, total };
                request.progress.event(event);
            }
        }
        request.progress.event(ImageEvent::LayerDone { digest });
        file.rewind().map_err(failed)?;
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_those_of_the_environment() {
        let environment = |docker_host: Option<&str>| Environment {
            docker_host: docker_host.map(str::to_owned),
            runtime_dir: Some("/run/user/7".into()),
            ..Environment::default()
        };
        let all = sockets(&environment(None)).unwrap();
        assert!(all.contains(&"/run/user/7/podman/podman.sock".into()), "{all:?}");
        assert!(all.contains(&"/var/run/docker.sock".into()), "{all:?}");
        assert_eq!(sockets(&environment(Some("unix:///x/y.sock"))).unwrap(), [PathBuf::from("/x/y.sock")]);
        for address in ["tcp://127.0.0.1:2375", "ssh://host", "unix://relative", "/x"] {
            let error = sockets(&environment(Some(address))).unwrap_err();
            assert!(matches!(error, ImageError::DaemonAddress { .. }), "{address}: {error:?}");
        }
    }
}
