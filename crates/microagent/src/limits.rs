//! Limits of commands and setup steps, so that they fit into messages and records. Larger ones are refused before
//! anything is created.

use microagent_model::{CommandLine, SetupStep};
use microagent_proto::{REQUEST_LIMIT, SECRETS_LIMIT};
use microagent_store::{WORKLOAD_LIMIT, Workload};
use microagent_vm::SPEC_LIMIT;

use crate::error::InvalidRequest;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Largest setup script, in bytes; scripts are text.
pub(crate) const SCRIPT_LIMIT: usize = MIB;

/// Most bytes of arguments and environment of one command.
///
/// # Source
/// `execve(2)`: a kernel takes 6 MiB with any limit of the stack, and less with most.
const COMMAND_LIMIT: usize = 6 * MIB;

/// Most bytes of all setup steps and the command together, each with its environment.
const WORK_LIMIT: usize = 10 * MIB;

/// What surrounds each text in a message, at most: its length.
const PER_TEXT: usize = 10;

/// Room for what is not counted: names of users and directories, terminal, labels.
const REST: usize = 256 * KIB;

/// Bytes of JSON for one byte of text, at most: `\u0001`.
const ESCAPED: usize = 6;

const _: () = assert!(SCRIPT_LIMIT + COMMAND_LIMIT + REST <= REQUEST_LIMIT);
const _: () = assert!(WORK_LIMIT + 2 * SECRETS_LIMIT + REST <= SPEC_LIMIT);
const _: () = assert!((ESCAPED * (WORK_LIMIT + REST)) as u64 <= WORKLOAD_LIMIT);

/// Refuses a command that is too large for a message.
pub(crate) fn check_command(workload: &Workload, command: &CommandLine) -> Result<(), InvalidRequest> {
    within(environment_len(workload) + command_len(command), COMMAND_LIMIT, "arguments and environment are")
}

/// Refuses setup steps and a command (or service) that are too large for a message or for the workspace's record.
pub(crate) fn check_work(workload: &Workload, command: Option<&CommandLine>) -> Result<(), InvalidRequest> {
    let environment = environment_len(workload);
    let mut all = environment;
    if let Some(command) = command {
        check_command(workload, command)?;
        all += command_len(command);
    }
    for step in &workload.setup {
        let (len, limit) = match step {
            SetupStep::Shell(line) => (text_len(line), COMMAND_LIMIT),
            SetupStep::Script { content, .. } => (content.len(), SCRIPT_LIMIT),
        };
        within(environment.max(len), COMMAND_LIMIT, "arguments and environment are")?;
        within(len, limit, "a setup step is")?;
        all += environment + len + text_len(&step.label());
    }
    within(all, WORK_LIMIT, "setup steps, each with the environment, are")
}

fn within(len: usize, limit: usize, what: &'static str) -> Result<(), InvalidRequest> {
    match len <= limit {
        true => Ok(()),
        false => Err(InvalidRequest::TooLarge { what, limit_mib: limit / MIB }),
    }
}

fn text_len(text: &str) -> usize {
    text.len() + PER_TEXT
}

fn command_len(command: &CommandLine) -> usize {
    match command {
        CommandLine::Argv(words) => words.iter().map(|word| text_len(word)).sum(),
        CommandLine::Shell(line) => text_len(line),
    }
}

fn environment_len(workload: &Workload) -> usize {
    let entries = workload.env.iter().map(|(name, value)| text_len(name) + text_len(value));
    entries.sum::<usize>() + text_len(&workload.working_dir) + text_len(&workload.user)
}

#[cfg(test)]
mod tests {
    use microagent_proto::Request;
    use microagent_store::WorkspaceDir;

    use super::*;
    use crate::provision::{exec_request, setup_steps};

    fn workload(env_len: usize, setup: Vec<SetupStep>) -> Workload {
        Workload { env: vec![("A".into(), "\u{1}".repeat(env_len))], setup, ..Workload::default() }
    }

    fn script(len: usize) -> SetupStep {
        SetupStep::Script { name: "setup.sh".into(), content: vec![b'#'; len] }
    }

    async fn is_one_message(exec: microagent_proto::Exec) {
        let request = Request::Exec(exec);
        microagent_proto::write_message(&mut tokio::io::sink(), &request, REQUEST_LIMIT).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_accepted_can_be_sent_and_stored() {
        let line = CommandLine::Shell("true".into());
        let largest = workload(COMMAND_LIMIT - 100, Vec::new());
        check_work(&largest, Some(&line)).unwrap();
        is_one_message(exec_request(&largest, &line)).await;

        let scripts = workload(COMMAND_LIMIT / 4, vec![script(SCRIPT_LIMIT), script(SCRIPT_LIMIT)]);
        check_work(&scripts, Some(&line)).unwrap();
        for step in setup_steps(&scripts) {
            is_one_message(step.exec).await;
        }
        let dir = tempfile::tempdir().unwrap();
        let dir = WorkspaceDir::at(dir.path());
        for workload in [largest, scripts] {
            workload.save(&dir).unwrap();
            assert_eq!(Workload::load(&dir).unwrap(), workload);
        }
    }

    #[test]
    fn what_is_too_large_is_named() {
        let refusal = |workload: &Workload, command: Option<&CommandLine>| {
            check_work(workload, command).unwrap_err().to_string()
        };
        let line = CommandLine::Shell("true".into());
        let large = workload(COMMAND_LIMIT, Vec::new());
        assert_eq!(refusal(&large, Some(&line)), "arguments and environment are larger than 6 MiB");
        let words = CommandLine::Argv(vec!["x".repeat(COMMAND_LIMIT)]);
        assert!(refusal(&workload(0, Vec::new()), Some(&words)).starts_with("arguments and environment are"));
        let step = workload(0, vec![script(SCRIPT_LIMIT + 1)]);
        assert_eq!(refusal(&step, None), "a setup step is larger than 1 MiB");
        let many = workload(0, (0..11).map(|_| script(SCRIPT_LIMIT)).collect());
        assert_eq!(refusal(&many, None), "setup steps, each with the environment, are larger than 10 MiB");
    }
}
