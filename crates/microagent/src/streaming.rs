//! Streams of items: a task produces them, the caller receives them through a short queue.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::Error;

/// A [`Stream`] of items that a task produces: logs, events, statistics, tar data.
///
/// The queue is short: a task whose queue is full waits until the caller takes an item. Dropping this value ends the
/// task. After an error there are no more items. [`Streaming::next`] needs no crate of extensions.
///
/// ```no_run
/// # use microagent::{LogOptions, Workspace};
/// # async fn example(workspace: &Workspace) -> Result<(), microagent::Error> {
/// let mut log = workspace.follow_logs(LogOptions::new().tail(10)).await?;
/// while let Some(bytes) = log.next().await {
///     print!("{}", String::from_utf8_lossy(&bytes?));
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "nothing happens unless items are taken"]
pub struct Streaming<T> {
    items: mpsc::Receiver<Result<T, Error>>,
    work: AbortHandle,
}

impl<T: Send + 'static> Streaming<T> {
    /// Starts the work, which sends items; the queue has this length. The error of the work is the last item.
    pub(crate) fn start<F>(
        queue: usize,
        work: impl FnOnce(mpsc::Sender<Result<T, Error>>) -> F,
    ) -> Streaming<T>
    where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        let (sender, items) = mpsc::channel(queue);
        let work = work(sender.clone());
        let task = tokio::spawn(async move {
            if let Err(error) = work.await {
                // A caller that dropped the stream needs no error.
                let _ = sender.send(Err(error)).await;
            }
        });
        Streaming { items, work: task.abort_handle() }
    }
}

impl<T> Streaming<T> {
    /// Waits for the next item. Returns `None` after the last one. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<T, Error>> {
        poll_fn(|context| self.items.poll_recv(context)).await
    }
}

impl<T> Stream for Streaming<T> {
    type Item = Result<T, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.items.poll_recv(context)
    }
}

impl<T> Drop for Streaming<T> {
    fn drop(&mut self) {
        self.work.abort();
    }
}

/// Sends an item. Fails if the caller dropped the stream.
pub(crate) async fn hand_over<T>(sender: &mpsc::Sender<Result<T, Error>>, item: T) -> Result<(), Error> {
    sender.send(Ok(item)).await.map_err(|_| Error::Cancelled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_error_is_the_last_item() {
        let mut items = Streaming::start(1, |sender| async move {
            hand_over(&sender, 1).await?;
            hand_over(&sender, 2).await?;
            Err(Error::Cancelled)
        });
        assert!(matches!(items.next().await, Some(Ok(1))));
        assert!(matches!(items.next().await, Some(Ok(2))));
        assert!(matches!(items.next().await, Some(Err(Error::Cancelled))));
        assert!(items.next().await.is_none());
    }

    #[tokio::test]
    async fn the_work_waits_for_who_takes_items_and_ends_with_them() {
        let (counter, mut counted) = mpsc::unbounded_channel();
        let mut items = Streaming::start(1, |sender| async move {
            for number in 0.. {
                hand_over(&sender, number).await?;
                counter.send(number).ok();
            }
            Ok(())
        });
        assert!(matches!(items.next().await, Some(Ok(0))));
        drop(items);
        let mut made = 0;
        while counted.recv().await.is_some() {
            made += 1;
        }
        assert!(made < 4, "{made} items were made for one that was taken");
    }
}
