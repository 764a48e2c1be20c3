//! Templates: build in advance, list, remove.

use std::cell::RefCell;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::time::SystemTime;

use microagent_model::{DnsSettings, EgressPolicy, NetworkMode, RateLimits, Resources, WorkspaceName};
use microagent_proto::Settings;
use microagent_store::WorkspaceDir;
pub use microagent_vm::template::TemplatePrune;
use microagent_vm::template::{self, TemplateInfo};
use microagent_vm::{Outcome, Timeline, Work};

use crate::blocking::blocking;
use crate::error::InvalidRequest;
use crate::supervisor_events::{EndTranslator, Purpose, SupervisorProgress};
use crate::supervisor_spec::{MachineRequest, new_identity};
use crate::{Engine, Error, Progress};

/// Fewest digits of a shortened key.
const KEY_DIGITS_MIN: usize = 6;

/// Name of the supervisor of a freeze in lists of processes.
const NAME: &str = "template-build";

/// A template.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Template {
    /// Its key: a digest of everything that it depends on.
    pub key: String,
    /// Backend, memory in MiB, CPUs, network; `None` if its manifest is damaged.
    pub shape: Option<Shape>,
    /// Name of its mounted base disk; `None` for the template of a shape, which all images can use.
    pub disk: Option<String>,
    /// When it was frozen.
    pub created_at: Option<jiff::Timestamp>,
    /// When a machine last started from it.
    pub used_at: SystemTime,
    /// Bytes on disk.
    pub bytes: u64,
    /// Whether it cannot be used any more: the host was booted since, or its image was removed.
    pub stale: bool,
}

/// The part of a shape that a user chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shape {
    /// Hardware virtualisation or emulation.
    pub kvm: bool,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub cpu_count: u32,
    /// Network mode.
    pub network: NetworkMode,
}

impl Template {
    fn of(info: TemplateInfo) -> Template {
        let disk = info.shape.as_ref().and_then(|shape| {
            let name = shape.image.as_ref()?.base.file_stem()?;
            Some(name.to_string_lossy().into_owned())
        });
        let shape = info.shape.map(|shape| Shape {
            kvm: shape.kvm,
            memory_mib: shape.memory_mib,
            cpu_count: shape.cpu_count,
            network: if shape.network { NetworkMode::User } else { NetworkMode::Isolated },
        });
        let TemplateInfo { key, created_at, used_at, bytes, stale, .. } = info;
        Template { key, shape, disk, created_at, used_at, bytes, stale }
    }
}

/// The templates of a state directory. Made by [`Engine::templates`].
#[derive(Debug, Clone)]
pub struct Templates {
    engine: Engine,
}

impl Engine {
    /// Returns the templates of this state directory.
    pub fn templates(&self) -> Templates {
        Templates { engine: self.clone() }
    }
}

impl Templates {
    /// Lists templates, most recently used first. Changes nothing.
    ///
    /// # Errors
    /// Fails if the state directory exists and cannot be read.
    pub async fn list(&self) -> Result<Vec<Template>, Error> {
        let templates = self.clone();
        blocking(move || templates.read_list()).await
    }

    /// As [`Templates::list`], on this thread.
    pub(crate) fn read_list(&self) -> Result<Vec<Template>, Error> {
        let found = template::list(self.engine.state()).map_err(|source| self.unreadable(source))?;
        Ok(found.into_iter().map(Template::of).collect())
    }

    /// Returns the template with this key. A key can be shortened to its first digits, at least 6, if they are unique.
    ///
    /// # Errors
    /// Fails if no template has this key ([`NotFound`](crate::ErrorKind::NotFound)), several have
    /// ([`Invalid`](crate::ErrorKind::Invalid)), or the state directory cannot be read.
    pub async fn get(&self, key: &str) -> Result<Template, Error> {
        let (templates, key) = (self.clone(), key.to_owned());
        blocking(move || templates.find(&key).map(Template::of)).await
    }

    /// Deletes the template with this key, which can be shortened as for [`Templates::get`]. Machines that were
    /// restored from it keep running; a start that needs it builds it again.
    ///
    /// # Errors
    /// Fails when there is none or more than one, or the state directory cannot be read.
    pub async fn delete(&self, key: &str) -> Result<Template, Error> {
        let (templates, key) = (self.clone(), key.to_owned());
        blocking(move || {
            let found = templates.find(&key)?;
            template::remove(templates.engine.state(), &found);
            Ok(Template::of(found))
        })
        .await
    }

    /// Removes templates and returns the removed ones. Machines that were restored from them keep running.
    ///
    /// # Errors
    /// Fails when the state directory exists and cannot be read.
    pub async fn prune(&self, which: TemplatePrune) -> Result<Vec<Template>, Error> {
        let templates = self.clone();
        blocking(move || {
            let gone = template::prune(templates.engine.state(), which);
            Ok(gone.map_err(|source| templates.unreadable(source))?.into_iter().map(Template::of).collect())
        })
        .await
    }

    /// Boots a machine of this size and freezes it. The new template replaces one of the same shape. Returns the
    /// times of the phases.
    ///
    /// # Errors
    /// Fails if the machine does not start or cannot be frozen, or `progress` is cancelled. Then no template is
    /// created.
    pub async fn create(
        &self,
        resources: Resources,
        network: NetworkMode,
        progress: &Progress,
    ) -> Result<Timeline, Error> {
        progress.check()?;
        let engine = &self.engine;
        engine.prepare()?;
        let programs = engine.host_programs(network)?;
        let tmp = engine.state().tmp();
        let failed = |source| Error::File { action: "create a directory in", path: tmp, source };
        // The supervisor locks its directory, and the scratch directory is locked already.
        let made = engine.state().scratch().and_then(|scratch| {
            let dir = WorkspaceDir::at(scratch.path().join("machine"));
            DirBuilder::new().mode(0o700).create(dir.path()).map(|()| (scratch, dir))
        });
        let (_scratch, dir) = made.map_err(failed)?;
        let machine = MachineRequest {
            name: NAME,
            hostname: NAME,
            identity: new_identity()?,
            resources,
            dir: &dir,
            disk: None,
            publish: &[],
            egress: EgressPolicy::default(),
            dns: DnsSettings::default(),
            forwards: &[],
            brokers: &[],
            networks: &[],
            limits: RateLimits::default(),
            disks: &[],
            settings: Settings::default(),
        };
        let mut spec = engine.spec(&programs, &machine, Work::Freeze)?;
        // Requested by name, whatever the default is.
        spec.warm = Ok(());
        let name: WorkspaceName = NAME.parse().expect("the name of the supervisor is a name");
        let end = EndTranslator {
            purpose: Purpose::Template,
            workspace: &name,
            backend: programs.backend(),
            dir: &dir,
            labels: &[],
            opened: RefCell::default(),
        };
        let supervisor = engine.launch(spec, progress).await?;
        match supervisor.follow(progress).await.map_err(|error| end.lost(error))? {
            SupervisorProgress::Ended(ended) if matches!(ended.outcome, Outcome::Frozen) => {
                Ok(ended.timeline)
            }
            SupervisorProgress::Ended(ended) => Err(end.ended(*ended)),
            SupervisorProgress::Serving(_) => Err(end.still_serving()),
        }
    }

    fn find(&self, key: &str) -> Result<TemplateInfo, Error> {
        let mut found = template::list(self.engine.state()).map_err(|source| self.unreadable(source))?;
        match matching(key, found.iter().map(|template| template.key.as_str())) {
            Matching::One(index) => Ok(found.swap_remove(index)),
            Matching::None => Err(Error::NoSuchTemplate { key: key.to_owned() }),
            Matching::Several => Err(InvalidRequest::AmbiguousTemplate { key: key.to_owned() }.into()),
        }
    }

    fn unreadable(&self, source: std::io::Error) -> Error {
        Error::File { action: "read", path: self.engine.state().templates(), source }
    }
}

/// The keys that match a text.
#[derive(Debug, PartialEq, Eq)]
enum Matching {
    /// This one, by its place.
    One(usize),
    None,
    Several,
}

fn matching<'a>(text: &str, keys: impl Iterator<Item = &'a str> + Clone) -> Matching {
    if let Some(index) = keys.clone().position(|key| key == text) {
        return Matching::One(index);
    }
    let mut begins =
        keys.enumerate().filter(|(_, key)| text.len() >= KEY_DIGITS_MIN && key.starts_with(text));
    match (begins.next(), begins.next()) {
        (Some((index, _)), None) => Matching::One(index),
        (None, _) => Matching::None,
        (Some(_), Some(_)) => Matching::Several,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_whole_or_by_their_first_digits() {
        let keys = ["abcdef0", "abcdef01", "bbcdef0"];
        let of = |text| matching(text, keys.into_iter());
        assert_eq!(of("abcdef0"), Matching::One(0), "a whole key is not another's beginning");
        assert_eq!(of("abcdef01"), Matching::One(1));
        assert_eq!(of("bbcdef"), Matching::One(2));
        assert_eq!(of("abcdef"), Matching::Several);
        for text in ["bbcde", "", "cbcdef0", "bbcdef00"] {
            assert_eq!(of(text), Matching::None, "{text}");
        }
    }
}
