//! The images of a state directory: create (pull or import), list, get, delete.

use microagent_image::{
    ConfigChanges, Image, ImageDeletion, ImageError, ImageHistory, ImageList, ImagePrune, ImageStore,
    ImportSource, LoadOptions, NetworkOptions, Pruned, PullOptions, PullPolicy, Pushed, SaveTarget, Saved,
    Tagged,
};

use crate::blocking::blocking;
use crate::{Engine, Error, Progress};

/// The images in the cache of a state directory. Made by [`Engine::images`].
///
/// An [`Image`] holds a lock of the cache: until it is dropped or [released](Image::release), no other command and no
/// other handle can remove images.
///
/// ```no_run
/// # use microagent::{Engine, Progress};
/// use microagent::image::PullOptions;
///
/// # async fn example(engine: &Engine, progress: &Progress) -> Result<(), microagent::Error> {
/// let images = engine.images();
/// // From a registry, and from a file.
/// let debian = images.create("debian:12", &PullOptions::default(), progress).await?;
/// println!("{}: {}", debian.resolved_reference, debian.digest);
/// drop(debian);
/// images.create("oci-archive:app.tar:v1", &PullOptions::default(), progress).await?.release();
/// // From the cache only.
/// match images.get("busybox").await {
///     Ok(image) => println!("{:?}", image.config.cmd),
///     Err(error) if error.kind() == microagent::ErrorKind::NotFound => println!("not in the cache"),
///     Err(error) => return Err(error),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Images {
    store: ImageStore,
}

impl Engine {
    /// Returns the images of this state directory.
    pub fn images(&self) -> Images {
        Images { store: self.image_store() }
    }
}

impl Images {
    /// Fetches an image from a registry or an archive, and creates its base disk. A reference without registry, namespace or
    /// tag is completed as Docker does: `busybox` is `docker.io/library/busybox:latest`. The file of an archive is named
    /// with its format, such as `oci-archive:app.tar`; [`ImageReference`](crate::image::ImageReference) lists the forms.
    ///
    /// # Errors
    /// Fails if the reference is not valid ([`Invalid`](crate::ErrorKind::Invalid)), the image or archive does not exist,
    /// or the archive has no such image ([`NotFound`](crate::ErrorKind::NotFound)), the image cannot be fetched or unpacked
    /// ([`Image`](crate::ErrorKind::Image)), or `progress` is cancelled. Complete layers are kept for the next attempt.
    pub async fn create(
        &self,
        reference: &str,
        options: &PullOptions,
        progress: &Progress,
    ) -> Result<Image, Error> {
        progress.check()?;
        Ok(self.store.ensure(reference, options, &progress.images(), progress.token()).await?)
    }

    /// Lists the images in the cache. Changes nothing; damaged records are listed separately.
    ///
    /// # Errors
    /// Fails if the directory of records exists and cannot be read.
    pub async fn list(&self) -> Result<ImageList, Error> {
        let store = self.store.clone();
        blocking(move || Ok(store.list()?)).await
    }

    /// Returns how many bytes of the host's disk the cache takes. What several images have in common counts once.
    ///
    /// # Errors
    /// Fails if a directory of the cache exists and cannot be read.
    pub async fn stored_bytes(&self) -> Result<u64, Error> {
        let store = self.store.clone();
        blocking(move || Ok(store.stored_bytes()?)).await
    }

    /// Returns an image of the cache by its reference. No registry is contacted.
    ///
    /// # Errors
    /// Fails if the image is not in the cache ([`NotFound`](crate::ErrorKind::NotFound)).
    pub async fn get(&self, reference: &str) -> Result<Image, Error> {
        let options = PullOptions::default().policy(PullPolicy::Never);
        self.create(reference, &options, &Progress::new()).await.map_err(|error| match error {
            // The caller has set no policy.
            Error::Image(ImageError::NotCached { .. }) => {
                ImageError::NoSuchImage { reference: reference.to_owned() }.into()
            }
            error => error,
        })
    }

    /// Returns how an image of the cache was built: its steps and their layers.
    ///
    /// # Errors
    /// Fails if the image does not exist ([`NotFound`](crate::ErrorKind::NotFound)) or its configuration is missing or
    /// damaged ([`Image`](crate::ErrorKind::Image)).
    pub async fn history(&self, reference_or_digest: &str) -> Result<ImageHistory, Error> {
        let (store, name) = (self.store.clone(), reference_or_digest.to_owned());
        blocking(move || Ok(store.history(&name)?)).await
    }

    /// Removes an image by reference or digest.
    ///
    /// # Errors
    /// Fails if the image does not exist ([`NotFound`](crate::ErrorKind::NotFound)) or a workspace uses it
    /// ([`Image`](crate::ErrorKind::Image)), or if another call has used an image for two seconds
    /// ([`Busy`](crate::ErrorKind::Busy)): an [`Image`] that the caller keeps counts.
    pub async fn delete(&self, reference_or_digest: &str) -> Result<ImageDeletion, Error> {
        let (store, name) = (self.store.clone(), reference_or_digest.to_owned());
        blocking(move || Ok(store.delete(&name)?)).await
    }

    /// Adds the images of an archive (`docker save` or OCI) to the cache, with their names. For the tar file of a root
    /// file system see [`Images::import`].
    ///
    /// # Errors
    /// Fails if the archive is not valid, or as [`Images::create`] does.
    pub async fn load(
        &self,
        source: ImportSource,
        options: &LoadOptions,
        progress: &Progress,
    ) -> Result<Vec<Image>, Error> {
        progress.check()?;
        Ok(self.store.load(source, options, &progress.images(), progress.token()).await?)
    }

    /// Creates an image from a tar file of a root file system. A name that exists is moved to the new image.
    ///
    /// # Errors
    /// Fails if the name is not a tag, the source is not a tar file, or as [`Images::create`] does.
    pub async fn import(
        &self,
        source: ImportSource,
        reference: &str,
        changes: &ConfigChanges,
        progress: &Progress,
    ) -> Result<Image, Error> {
        progress.check()?;
        Ok(self.store.import(source, reference, changes, &progress.images(), progress.token()).await?)
    }

    /// Adds a name to an image of the cache.
    ///
    /// # Errors
    /// Fails if the image does not exist ([`NotFound`](crate::ErrorKind::NotFound)) or the name is not a tag
    /// ([`Invalid`](crate::ErrorKind::Invalid)).
    pub async fn tag(&self, image: &str, reference: &str) -> Result<Tagged, Error> {
        let (store, image, reference) = (self.store.clone(), image.to_owned(), reference.to_owned());
        blocking(move || Ok(store.tag(&image, &reference)?)).await
    }

    /// Uploads an image of the cache to its registry.
    ///
    /// # Errors
    /// Fails if the image does not exist ([`NotFound`](crate::ErrorKind::NotFound)) or the registry does not accept it
    /// ([`Image`](crate::ErrorKind::Image)).
    pub async fn push(
        &self,
        reference: &str,
        network: &NetworkOptions,
        progress: &Progress,
    ) -> Result<Pushed, Error> {
        progress.check()?;
        Ok(self.store.push(reference, network, &progress.images(), progress.token()).await?)
    }

    /// Writes images of the cache to one OCI archive. Missing layers are fetched first.
    ///
    /// # Errors
    /// Fails if an image does not exist ([`NotFound`](crate::ErrorKind::NotFound)), a layer cannot be fetched
    /// ([`Image`](crate::ErrorKind::Image)), or the target cannot be written. Then no file is created or changed.
    pub async fn save(
        &self,
        references: &[String],
        target: SaveTarget,
        network: &NetworkOptions,
        progress: &Progress,
    ) -> Result<Saved, Error> {
        progress.check()?;
        Ok(self.store.save(references, target, network, &progress.images(), progress.token()).await?)
    }

    /// Removes unused data from the cache.
    ///
    /// # Errors
    /// Fails if the cache cannot be read, or another call has used an image for two seconds
    /// ([`Busy`](crate::ErrorKind::Busy)).
    pub async fn prune(&self, which: ImagePrune) -> Result<Pruned, Error> {
        let store = self.store.clone();
        blocking(move || Ok(store.prune(which)?)).await
    }
}
