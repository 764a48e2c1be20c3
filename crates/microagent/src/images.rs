//! The images of a state directory: create (pull or import), list, get, delete.

use microagent_image::{
    ConfigChanges, Deletion, Image, ImageList, ImageStore, ImportSource, LoadOptions, NetworkOptions, Pruned,
    PullOptions, PullPolicy, Pushed, SaveTarget, Saved, Tagged,
};

use crate::{Engine, Error, Progress};

/// The images of a state directory. Made by [`Engine::images`].
#[derive(Debug, Clone)]
pub struct Images {
    store: ImageStore,
}

impl Engine {
    /// The images of this state directory.
    pub fn images(&self) -> Images {
        Images { store: self.image_store() }
    }
}

/// Which images are removed by [`Images::prune`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prune {
    /// What no record and no workspace needs.
    Unused,
    /// Every image that no workspace uses, too.
    All,
}

impl Images {
    /// Brings an image in, from a registry or an archive, and makes its base disk.
    ///
    /// # Errors
    /// Fails when the reference is not understood, the image cannot be fetched or unpacked, or `progress` is cancelled.
    /// Layers that were complete stay for the next attempt.
    pub async fn create(
        &self,
        reference: &str,
        options: &PullOptions,
        progress: &Progress,
    ) -> Result<Image, Error> {
        Ok(self.store.ensure(reference, options, progress, progress.token()).await?)
    }

    /// Lists the images in the cache. Changes nothing; a damaged record is listed apart.
    ///
    /// # Errors
    /// Fails when the directory of records exists and cannot be read.
    pub fn list(&self) -> Result<ImageList, Error> {
        Ok(self.store.list()?)
    }

    /// An image of the cache. No registry is asked.
    ///
    /// # Errors
    /// Fails when it is not in the cache.
    pub async fn get(&self, reference: &str) -> Result<Image, Error> {
        let options = PullOptions::default().policy(PullPolicy::Never);
        self.create(reference, &options, &Progress::new()).await
    }

    /// Removes an image by reference or digest.
    ///
    /// # Errors
    /// Fails when there is no such image, or a workspace uses it.
    pub fn delete(&self, reference_or_digest: &str) -> Result<Deletion, Error> {
        Ok(self.store.delete(reference_or_digest)?)
    }

    /// Brings in the images of an archive, under their names.
    ///
    /// # Errors
    /// Fails when the archive is not understood, or as [`Images::create`] does.
    pub async fn load(
        &self,
        source: ImportSource,
        options: &LoadOptions,
        progress: &Progress,
    ) -> Result<Vec<Image>, Error> {
        Ok(self.store.load(source, options, progress, progress.token()).await?)
    }

    /// Makes an image of a root file system in a tar file.
    ///
    /// # Errors
    /// Fails when the name is no plain tag, the source is no tar, or as [`Images::create`] does.
    pub async fn import(
        &self,
        source: ImportSource,
        reference: &str,
        changes: &ConfigChanges,
        progress: &Progress,
    ) -> Result<Image, Error> {
        Ok(self.store.import(source, reference, changes, progress, progress.token()).await?)
    }

    /// Gives an image of the cache another name.
    ///
    /// # Errors
    /// Fails when there is no such image, or the name is no plain tag.
    pub fn tag(&self, image: &str, reference: &str) -> Result<Tagged, Error> {
        Ok(self.store.tag(image, reference)?)
    }

    /// Sends an image of the cache to its registry.
    ///
    /// # Errors
    /// Fails when there is no such image, or the registry refuses it.
    pub async fn push(
        &self,
        reference: &str,
        network: &NetworkOptions,
        progress: &Progress,
    ) -> Result<Pushed, Error> {
        Ok(self.store.push(reference, network, progress, progress.token()).await?)
    }

    /// Writes images of the cache into one OCI archive. A layer that is missing is fetched first.
    ///
    /// # Errors
    /// Fails when there is no such image, a layer cannot be fetched, or the target cannot be written. No file is left
    /// or changed then.
    pub async fn save(
        &self,
        references: &[String],
        target: SaveTarget,
        network: &NetworkOptions,
        progress: &Progress,
    ) -> Result<Saved, Error> {
        Ok(self.store.save(references, target, network, progress, progress.token()).await?)
    }

    /// Removes what is not used.
    ///
    /// # Errors
    /// Fails when the cache cannot be read.
    pub fn prune(&self, which: Prune) -> Result<Pruned, Error> {
        Ok(self.store.prune(which == Prune::All)?)
    }
}
