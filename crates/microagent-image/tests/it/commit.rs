//! Layers of a guest's making on top of an image.

use std::fs;
use std::io::{Cursor, Read};

use microagent_image::{
    Commit, CommitDetails, Committed, ConfigChanges, Digest, ImageError, ImagePrune, Origin, PullPolicy,
};
use tokio_util::sync::CancellationToken;

use crate::support::layout::{Layer, Layout, noise, tar};
use crate::support::{Events, Home, assert_clean_disk, read_from_disk, text};

const LIMIT: u64 = 64 << 20;

/// A home with an image of one file, and its manifest's digest.
async fn based(home: &Home) -> String {
    let layout = Layout::simple(&home.path("layout"), "base");
    home.pull(&layout.reference("latest")).await.unwrap().digest
}

async fn begin(home: &Home, base: &str, reference: &str) -> Result<Commit, ImageError> {
    home.store.begin_commit(base, reference, &Events::default(), &CancellationToken::new()).await
}

async fn commit(home: &Home, base: &str, reference: &str, layer: &[u8]) -> Result<Committed, ImageError> {
    let commit = begin(home, base, reference).await?;
    let layer = commit.take_layer(Cursor::new(layer), LIMIT, &|| false)?;
    commit.finish(layer, &CommitDetails { created_by: "a test".into(), ..CommitDetails::default() })
}

#[tokio::test]
async fn a_layer_more_is_an_image_whose_disk_is_made_at_its_first_use() {
    let home = Home::new();
    let base = based(&home).await;
    let layer = tar(&[("etc/new", b"new"), (".wh.gone", b"")]);
    let made = commit(&home, &base, "my/app:1", &layer).await.unwrap();
    assert_eq!(made.diff_id, Digest::of(&layer).to_string());
    assert_eq!(made.content_bytes, 3);
    let listed = home.store.list().unwrap().images;
    let listed = listed.iter().find(|image| image.digest == made.digest).unwrap();
    assert_eq!((listed.origin, listed.disk_present), (Origin::Commit, false));

    let image = home.ensure("my/app:1", PullPolicy::Never).await.unwrap();
    assert_clean_disk(&image.disk);
    assert_eq!(
        (image.digest.as_str(), image.config.cmd.as_slice()),
        (made.digest.as_str(), &["/bin/cmd".to_owned()][..])
    );
    for (path, content) in [("/etc/content", "base"), ("/etc/new", "new")] {
        assert_eq!(read_from_disk(&image.disk, path), content);
    }
    // By another name and by digest, too, and after the disk was lost.
    home.store.tag("my/app:1", "other:1").unwrap();
    fs::remove_file(&image.disk).unwrap();
    drop(image);
    for name in ["other:1".to_owned(), format!("some/where@{}", made.digest)] {
        let image = home.ensure(&name, PullPolicy::Never).await.unwrap();
        assert_eq!(read_from_disk(&image.disk, "/etc/new"), "new", "{name}");
    }
    assert_eq!(home.files("partial"), [""; 0]);

    // On top of a commit, and after the names below are gone.
    let more = commit(&home, &made.digest, "my/app:2", &tar(&[("etc/more", b"more")])).await.unwrap();
    for reference in ["my/app:1", "other:1", &format!("some/where@{}", made.digest)] {
        home.store.delete(reference).unwrap();
    }
    home.store.prune(ImagePrune::Unused).unwrap();
    let image = home.ensure("my/app:2", PullPolicy::Never).await.unwrap();
    assert_eq!(image.digest, more.digest);
    assert_eq!(read_from_disk(&image.disk, "/etc/new"), "new");
}

#[tokio::test]
async fn the_same_changes_are_the_same_layer_and_none_are_an_empty_one() {
    let home = Home::new();
    let base = based(&home).await;
    let changes = tar(&[("big", &noise(1, 1 << 20))]);
    let one = commit(&home, &base, "x:1", &changes).await.unwrap();
    let two = commit(&home, &base, "x:2", &changes).await.unwrap();
    assert_eq!(one.layer_digest, two.layer_digest);
    let empty = commit(&home, &base, "x:3", &[0; 1024]).await.unwrap();
    assert_eq!((empty.content_bytes, empty.diff_id), (0, Digest::of(&[0; 1024]).to_string()));
    let image = home.ensure("x:3", PullPolicy::Never).await.unwrap();
    assert_eq!(image.origin, Origin::Cache);
    assert_eq!(home.files("disks").len(), 2, "one disk and what is said of it");
}

#[tokio::test]
async fn a_stream_that_is_no_layer_leaves_nothing() {
    let home = Home::new();
    let base = based(&home).await;
    let blobs = home.files("blobs/sha256");
    let climbing = {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..7].copy_from_slice(b"../evil");
        header.set_size(1);
        header.set_cksum();
        let mut builder = tar::Builder::new(Vec::new());
        builder.append(&header, &b"x"[..]).unwrap();
        builder.into_inner().unwrap()
    };
    let whole = tar(&[("a", &[1; 5000])]);
    for (bytes, expected) in [
        (
            &b"this is no tar, and long enough to be taken for one if nobody looked ............."[..],
            "damaged",
        ),
        (&whole[..3000], "damaged"),
        (&climbing, "reach outside"),
    ] {
        let error = commit(&home, &base, "bad:1", bytes).await.unwrap_err();
        assert!(text(&error).contains(expected), "{}", text(&error));
    }
    let commit = begin(&home, &base, "bad:1").await.unwrap();
    let endless = std::io::repeat(0).take(LIMIT + 1);
    let error = commit.take_layer(endless, LIMIT, &|| false).unwrap_err();
    assert!(matches!(error, ImageError::TooLarge { .. }), "{error:?}");
    let error = commit.take_layer(Cursor::new(&whole), LIMIT, &|| true).unwrap_err();
    assert!(matches!(error, ImageError::Cancelled), "{error:?}");
    // A layer that is never given a name goes with whoever took it.
    drop(commit.take_layer(Cursor::new(&whole), LIMIT, &|| false).unwrap());
    drop(commit);
    assert_eq!((home.files("partial"), home.files("blobs/sha256")), (Vec::new(), blobs));
    assert_eq!(home.store.list().unwrap().images.len(), 1);

    for reference in ["oci:dir", "UPPER", &format!("x@{}", Digest::of(b""))] {
        assert!(begin(&home, &base, reference).await.is_err(), "{reference}");
    }
    let error = begin(&home, Digest::of(b"nothing").as_str(), "x:1").await.unwrap_err();
    assert!(matches!(error, ImageError::MissingBlob { .. }), "{error:?}");
}

#[tokio::test]
async fn layers_that_are_missing_below_are_fetched_before_anything_else() {
    let home = Home::new();
    let (plain, packed) = (Layer::plain(&[("etc/content", b"x")]), Layer::gzip(&[("etc/content", b"x")]));
    let mut digests = Vec::new();
    for (name, layer) in [("plain", &plain), ("packed", &packed)] {
        let mut layout = Layout::new(&home.path(name));
        layout.tag("latest", layout.image("linux/amd64", std::slice::from_ref(layer)));
        digests.push(home.pull(&layout.reference("latest")).await.unwrap().digest);
    }
    let made = commit(&home, &digests[1], "made:1", &tar(&[("a", b"b")])).await.unwrap();
    let image = home.ensure("made:1", PullPolicy::Never).await.unwrap();
    assert_eq!((image.digest, read_from_disk(&image.disk, "/a")), (made.digest, "b".to_owned()));
    let changes = ConfigChanges { user: Some("9".into()), ..ConfigChanges::default() };
    let again = begin(&home, &digests[0], "made:2").await.unwrap();
    let layer = again.take_layer(Cursor::new([0; 1024]), LIMIT, &|| false).unwrap();
    again.finish(layer, &CommitDetails { changes, ..CommitDetails::default() }).unwrap();
    assert_eq!(home.ensure("made:2", PullPolicy::Never).await.unwrap().config.user, "9");
}
