//! `serve mcp --listen`: the server for clients that connect to it, and the token that they have to know.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::Args;
use microagent_mcp::{AccessToken, HttpServer, Policy};

use super::{failure, quoted};
use crate::config::open_file;
use crate::context::Context;
use crate::failure::Failure;
use crate::output::print_text;

/// Longest token file that is read, in bytes.
const TOKEN_FILE_MAX: u64 = 4096;

/// Permissions of group and others.
const OTHERS: u32 = 0o077;

/// Where a server listens, and who may connect.
#[derive(Debug, Args)]
pub(crate) struct ListenArgs {
    /// Serve over HTTP at this address, such as 127.0.0.1:8000, until a signal ends the server; port 0 chooses a free one
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = address, help_heading = "HTTP")]
    pub(super) listen: Option<SocketAddr>,

    /// Read the token from this file; if it does not exist, it is created with a new token, for its owner only, and so
    /// is its directory; without this option a new token is printed
    #[arg(long, value_name = "FILE", help_heading = "HTTP")]
    token_file: Option<PathBuf>,

    /// Name by which clients reach the server besides localhost, such as that of a TLS proxy (repeatable); allows other addresses than loopback
    #[arg(long, value_name = "HOST[:PORT]", value_parser = host, help_heading = "HTTP")]
    allow_host: Vec<String>,
}

/// An address to listen at.
fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| match text.trim_start_matches(':').parse::<u16>() {
        Ok(port) => format!("the address is missing; write 127.0.0.1:{port}"),
        Err(_) => "expected an IP address and a port, such as 127.0.0.1:8000 or [::1]:8000".to_owned(),
    })
}

/// A host as it stands in an address.
fn host(text: &str) -> Result<String, &'static str> {
    let is_good = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    match !text.is_empty() && text.len() <= 255 && text.chars().all(is_good) {
        true => Ok(text.to_owned()),
        false => Err("expected a name such as agents.example.org, or one with a port"),
    }
}

impl ListenArgs {
    /// These, with those of a policy file below them; names of hosts are added.
    pub(super) fn over(mut self, file: Option<ListenArgs>) -> Result<ListenArgs, Failure> {
        if let Some(file) = file {
            self.listen = self.listen.or(file.listen);
            self.token_file = self.token_file.or(file.token_file);
            self.allow_host.extend(file.allow_host);
        }
        match self.listen.is_none() && (self.token_file.is_some() || !self.allow_host.is_empty()) {
            true => Err(Failure::usage(
                "--token-file and --allow-host are for a server that listens",
                "add --listen 127.0.0.1:8000, or the key `listen` in the policy file",
            )),
            false => Ok(self),
        }
    }

    /// Serves until a signal ends the server.
    pub(super) fn serve(
        &self,
        context: &Context,
        policy: Policy,
        address: SocketAddr,
    ) -> Result<(), Failure> {
        let server = HttpServer::bind(address, self.allow_host.clone()).map_err(failure)?;
        let token = self.token()?;
        self.announce(&server.url(), &token)?;
        context
            .block_on(async |cancel| Ok(server.serve(context.engine(), policy, token, cancel).await))?
            .map_err(failure)
    }

    fn token(&self) -> Result<AccessToken, Failure> {
        match &self.token_file {
            None => AccessToken::generate().map_err(no_random_bytes),
            Some(path) => match open_file(path) {
                Ok(file) => read_token(path, file),
                Err(error) if error.kind() == ErrorKind::NotFound => make_token(path),
                Err(source) => Err(Failure::File { action: "read", path: path.clone(), source }),
            },
        }
    }

    /// The address is the answer; how clients are told of it is for people.
    fn announce(&self, url: &str, token: &AccessToken) -> Result<(), Failure> {
        print_text(&format!("{url}\n"))?;
        let (said, shown) = match &self.token_file {
            None => (format!("Token: {}\n", token.reveal()), token.reveal().to_owned()),
            Some(path) => (String::new(), format!("$(cat {})", quoted(&path.display().to_string()))),
        };
        let text = format!(
            "{said}Claude Code: claude mcp add --transport http microagent {url} --header \"Authorization: Bearer {shown}\"\n\
             Other clients: type `http`, this address, and the header `Authorization: Bearer TOKEN`. Ctrl-C ends the server.\n"
        );
        // Who closed standard error wants to read nothing there.
        let _ = anstream::stderr().lock().write_all(text.as_bytes());
        Ok(())
    }
}

/// A token that clients know already.
fn read_token(path: &Path, file: File) -> Result<AccessToken, Failure> {
    let failed = |source| Failure::File { action: "read", path: path.to_owned(), source };
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() {
        return Err(Failure::usage(
            format!("{}: this is not a regular file", path.display()),
            "name another file for the token; one that does not exist is made",
        ));
    }
    let me = rustix::process::geteuid().as_raw();
    if found.uid() != me || found.mode() & OTHERS != 0 {
        return Err(Failure::usage(
            format!("{}: other users can read or write this file", path.display()),
            format!("make it yours alone: chmod 600 {}", path.display()),
        ));
    }
    let mut text = String::new();
    file.take(TOKEN_FILE_MAX).read_to_string(&mut text).map_err(failed)?;
    text.trim().parse().map_err(|error| {
        Failure::usage(format!("{}: {error}", path.display()), "delete the file to have a token made")
    })
}

/// A new token in a new file.
fn make_token(path: &Path) -> Result<AccessToken, Failure> {
    let token = AccessToken::generate().map_err(no_random_bytes)?;
    let write = || -> io::Result<()> {
        // A directory that is made is for its owner only, too.
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(format!("{}\n", token.reveal()).as_bytes())?;
        file.sync_all()
    };
    write().map_err(|source| Failure::File { action: "write", path: path.to_owned(), source })?;
    Ok(token)
}

fn no_random_bytes(error: io::Error) -> Failure {
    Failure::Other { message: format!("cannot make a token: {error}"), hint: None }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_file_is_made_once_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let args = ListenArgs { listen: None, token_file: Some(path.clone()), allow_host: Vec::new() };
        let made = args.token().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(args.token().unwrap(), made);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(args.token(), Err(Failure::Usage { .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "short\n").unwrap();
        assert!(matches!(args.token(), Err(Failure::Usage { .. })));
        let new = dir.path().join("config/microagent");
        let below = ListenArgs { token_file: Some(new.join("token")), ..args };
        assert_eq!(below.token().unwrap(), below.token().unwrap());
        assert_eq!(fs::metadata(&new).unwrap().permissions().mode() & 0o777, 0o700);
        let nowhere = ListenArgs { token_file: Some(path.join("token")), ..below };
        assert!(matches!(nowhere.token(), Err(Failure::File { .. })));
    }

    #[test]
    fn options_lie_over_a_file() {
        let args = |port: Option<u16>, hosts: &[&str]| ListenArgs {
            listen: port.map(|port| ([127, 0, 0, 1], port).into()),
            token_file: None,
            allow_host: hosts.iter().map(|&host| host.to_owned()).collect(),
        };
        let over = args(Some(1), &["a"]).over(Some(args(Some(2), &["b"]))).unwrap();
        assert_eq!((over.listen.unwrap().port(), over.allow_host), (1, vec!["a".into(), "b".into()]));
        let file = args(None, &["a"]).over(Some(args(Some(2), &[]))).unwrap();
        assert_eq!(file.listen.unwrap().port(), 2);
        assert!(matches!(args(None, &["a"]).over(None), Err(Failure::Usage { .. })));
        assert!(args(None, &[]).over(None).is_ok());
    }

    #[test]
    fn a_token_is_read_from_a_regular_file_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
        let args = ListenArgs { listen: None, token_file: Some(path), allow_host: Vec::new() };
        assert!(
            matches!(args.token(), Err(Failure::Usage { message, .. }) if message.contains("regular file"))
        );
    }

    #[test]
    fn a_port_alone_is_answered_with_the_address() {
        assert_eq!(address("[::1]:0"), Ok(([0, 0, 0, 0, 0, 0, 0, 1], 0).into()));
        for port in ["8000", ":8000"] {
            assert_eq!(address(port), Err("the address is missing; write 127.0.0.1:8000".to_owned()));
        }
        for bad in ["", "localhost:8000", "127.0.0.1", "127.0.0.1:99999"] {
            assert!(address(bad).unwrap_err().contains("such as 127.0.0.1:8000"), "{bad}");
        }
    }

    #[test]
    fn a_host_has_a_form() {
        for good in ["agents.example.org", "10.0.0.5:8443", "[2001:db8::1]:8443"] {
            assert!(host(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "https://agents.example.org", "*"] {
            assert!(host(bad).is_err(), "{bad}");
        }
    }
}
