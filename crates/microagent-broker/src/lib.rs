//! The secrets broker: a guest speaks plain HTTP to an address of its network stack, and the broker passes each request
//! on to one server over TLS, with a credential that the guest never has.
//!
//! [`serve`] runs all brokers of one machine, in a process of their own. It is handed connections of the guest over a
//! channel and reports each request over another. One parser reads what the guest sends, and what is passed on is written
//! anew from what it understood; headers that belong to a connection end here. Redirects are the guest's to follow.
//!
//! This crate starts no process and reads no file, except for what the C library reads to look names up. Everything is
//! bounded: connections, requests at a time, heads, waits, and lines of the audit.

#![forbid(unsafe_code)]

mod audit;
mod body;
mod channel;
mod exchange;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod headers;
mod instructions;
mod path;
mod upstream;

pub use audit::{BURST, PER_SECOND};
pub use instructions::{Endpoint, EndpointError, Instructions};

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use audit::Audit;
use channel::Channel;
use exchange::Exchanges;

/// Most connections of the guest at a time. One more is closed.
const CONNECTIONS_MAX: usize = 256;

/// Most requests at a time. One more is answered with 503.
const REQUESTS_MAX: usize = 64;

/// Longest head of a request and of an answer, in bytes.
const HEAD_MAX: usize = 64 * 1024;

/// Most headers of a request and of an answer.
const HEADERS_MAX: usize = 128;

/// How long a connection of the guest may take for a head, or be idle.
const HEAD_DEADLINE: Duration = Duration::from_secs(75);

/// How long requests may take to end when the guest's network has ended.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// Threads that look names up.
const LOOKUPS_MAX: usize = 4;

/// Serves connections that come over `connections` until that is closed. The audit goes to `audit`, one decision per
/// message, as JSON.
///
/// # Errors
/// When an endpoint cannot be served, or the channel cannot be read.
pub fn serve(instructions: Instructions, connections: OwnedFd, audit: OwnedFd) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(LOOKUPS_MAX)
        .build()?;
    let audit = Arc::new(Audit::new(audit));
    let exchanges = Exchanges::new(instructions, Arc::clone(&audit)).map_err(io::Error::other)?;
    runtime.block_on(take_connections(Arc::new(exchanges), connections))?;
    audit.flush();
    // A thread that looks a name up is not waited for.
    runtime.shutdown_background();
    Ok(())
}

async fn take_connections(exchanges: Arc<Exchanges>, connections: OwnedFd) -> io::Result<()> {
    let channel = Channel::new(connections)?;
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut served = JoinSet::new();
    while let Some((number, stream)) = channel.next().await? {
        while served.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        if !exchanges.has_endpoint(number) {
            continue;
        }
        let exchanges = Arc::clone(&exchanges);
        served.spawn(async move {
            serve_connection(exchanges, number, stream).await;
            drop(place);
        });
    }
    let _ = timeout(END_PATIENCE, async { while served.join_next().await.is_some() {} }).await;
    served.shutdown().await;
    Ok(())
}

/// Serves one connection. It ends with an error when the guest sends something else than HTTP, or goes away.
async fn serve_connection(exchanges: Arc<Exchanges>, number: usize, stream: UnixStream) {
    let service = service_fn(move |request| {
        let exchanges = Arc::clone(&exchanges);
        async move { Ok::<_, std::convert::Infallible>(exchanges.pass_on(number, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(HEAD_MAX)
        .max_headers(HEADERS_MAX)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    // What is wrong with it was answered already, or nobody is there to be told.
    let _ = connection.await;
}
