//! Single files of a workspace. Contents travel in the call; no path of the host is named.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use microagent::{FileEntry, FileKind, FileListOptions, FileRange, Workspace};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::call::Call;
use crate::error::ToolError;
use crate::output::{self, Encoding};
use crate::server::Server;

/// Bytes of a file that a result has, where the call does not say.
const READ_DEFAULT: usize = 64 * 1024;

/// Most bytes of a file that a result can have.
const READ_MAX: usize = 1024 * 1024;

/// Most bytes of a file that a call can write.
const WRITE_MAX: usize = 4 * 1024 * 1024;

/// Entries of a directory that a result has, where the call does not say.
const ENTRIES_DEFAULT: usize = 200;

/// Most entries of a directory that a result can have.
const ENTRIES_MAX: usize = 5000;

/// Most levels of directories that a result can have.
const DEPTH_MAX: u32 = 16;

/// Permissions to execute.
const EXECUTABLE: u16 = 0o111;

/// Mode of a file that is written, where the call does not say.
const MODE_DEFAULT: u16 = 0o644;

/// A file to write.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WriteFileArguments {
    /// Name of the workspace.
    name: String,
    #[serde(flatten)]
    file: NewFile,
}

/// A file with its content.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewFile {
    /// Path in the workspace, such as `/srv/app/main.py`.
    path: String,
    /// The whole content: text, or base64 as `encoding` says.
    content: String,
    /// How `content` is encoded: `utf-8` (as it is, without this) or `base64`.
    #[serde(default)]
    encoding: Option<ContentEncoding>,
    /// Whether the file is a program or script to be executed.
    #[serde(default)]
    executable: bool,
}

/// How content is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
enum ContentEncoding {
    #[serde(rename = "utf-8")]
    Utf8,
    #[serde(rename = "base64")]
    Base64,
}

/// What was written.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct WrittenDocument {
    /// Path in the workspace.
    path: String,
    /// Size of the file in bytes.
    bytes: u64,
}

/// A file to read.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReadFileArguments {
    /// Name of the workspace.
    name: String,
    /// Path in the workspace.
    path: String,
    /// Bytes from the beginning of the file to leave out.
    #[serde(default)]
    offset: u64,
    /// Most bytes in the result; 65536 without it, at most 1048576.
    #[serde(default)]
    max_bytes: Option<usize>,
}

/// A part of a file.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct FileDocument {
    /// Path in the workspace.
    path: String,
    /// The content, or the part of it.
    content: String,
    /// How `content` is encoded: base64 where it is not UTF-8.
    encoding: Encoding,
    /// Size of the whole file in bytes.
    size: u64,
    /// Bytes behind the part that were left out; read them with `offset`.
    omitted_bytes: u64,
    /// `offset` of the first byte behind the part.
    next_offset: u64,
}

/// A directory to list.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListFilesArguments {
    /// Name of the workspace.
    name: String,
    /// Directory in the workspace, such as `/srv/app`; `/` without it.
    #[serde(default)]
    path: Option<String>,
    /// How many levels of directories; 1 without it, at most 16.
    #[serde(default)]
    depth: Option<u32>,
    /// Most entries in the result; 200 without it, at most 5000.
    #[serde(default)]
    max_entries: Option<usize>,
}

/// What is in a directory.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct FilesDocument {
    /// The directory.
    path: String,
    /// Sorted; a directory comes before what is in it.
    entries: Vec<EntryDocument>,
    /// Entries that were left out.
    omitted_entries: u64,
}

/// One of its entries.
#[derive(Debug, Serialize, JsonSchema)]
struct EntryDocument {
    /// Path from the directory; that of a directory ends with `/`.
    path: String,
    /// Size of a regular file in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    /// True for a regular file that can be executed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    executable: bool,
    /// Where a symbolic link points.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    /// True for a device, FIFO or socket.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    special: bool,
}

impl From<FileEntry> for EntryDocument {
    fn from(entry: FileEntry) -> EntryDocument {
        let plain =
            EntryDocument { path: entry.path, size: None, executable: false, target: None, special: false };
        match entry.kind {
            FileKind::File { size } => {
                EntryDocument { size: Some(size), executable: entry.mode & EXECUTABLE != 0, ..plain }
            }
            FileKind::Directory => EntryDocument { path: plain.path + "/", ..plain },
            FileKind::Symlink { target } => EntryDocument { target: Some(target), ..plain },
            _ => EntryDocument { special: true, ..plain },
        }
    }
}

/// Lists a directory.
pub(super) async fn list_files(
    server: Server,
    call: Call,
    arguments: ListFilesArguments,
) -> Result<FilesDocument, ToolError> {
    let limit = arguments.max_entries.unwrap_or(ENTRIES_DEFAULT);
    let depth = arguments.depth.unwrap_or(1);
    if limit > ENTRIES_MAX || !(1..=DEPTH_MAX).contains(&depth) {
        return Err(ToolError::invalid(format!(
            "max_entries is at most {ENTRIES_MAX}, and depth from 1 to {DEPTH_MAX}"
        ))
        .hint("list a directory below it"));
    }
    let path = arguments.path.unwrap_or_else(|| "/".to_owned());
    let workspace = server.workspaces().find(&arguments.name)?;
    let options = FileListOptions::new(limit).depth(depth);
    let found = workspace.list_files(&path, options, &call.progress()).await?;
    let entries = found.entries.into_iter().map(EntryDocument::from).collect();
    Ok(FilesDocument { path, entries, omitted_entries: found.omitted })
}

/// Writes a file.
pub(super) async fn write_file(
    server: Server,
    call: Call,
    arguments: WriteFileArguments,
) -> Result<WrittenDocument, ToolError> {
    let file = arguments.file.decode()?;
    let workspace = server.workspaces().find(&arguments.name)?;
    let bytes = file.content.len() as u64;
    let path = file.path.clone();
    file.write(&workspace, &call).await?;
    Ok(WrittenDocument { path, bytes })
}

/// A file to be written.
pub(super) struct DecodedFile {
    pub(super) path: String,
    pub(super) content: Vec<u8>,
    mode: u16,
}

impl NewFile {
    /// Its bytes, if they are not too many.
    pub(super) fn decode(self) -> Result<DecodedFile, ToolError> {
        let content = match self.encoding {
            None | Some(ContentEncoding::Utf8) => self.content.into_bytes(),
            Some(ContentEncoding::Base64) => STANDARD
                .decode(self.content)
                .map_err(|error| ToolError::invalid(format!("the content is not base64: {error}")))?,
        };
        if content.len() > WRITE_MAX {
            return Err(ToolError::invalid(format!("the content has more than {WRITE_MAX} bytes"))
                .hint("make the file in the workspace, with `exec`"));
        }
        let mode = if self.executable { MODE_DEFAULT | EXECUTABLE } else { MODE_DEFAULT };
        Ok(DecodedFile { path: self.path, content, mode })
    }
}

impl DecodedFile {
    /// Writes it.
    pub(super) async fn write(self, workspace: &Workspace, call: &Call) -> Result<(), ToolError> {
        Ok(workspace.write_file(&self.path, self.content, self.mode, &call.progress()).await?)
    }
}

/// Reads a file.
pub(super) async fn read_file(
    server: Server,
    call: Call,
    arguments: ReadFileArguments,
) -> Result<FileDocument, ToolError> {
    let limit = arguments.max_bytes.unwrap_or(READ_DEFAULT);
    if limit > READ_MAX {
        return Err(ToolError::invalid(format!("max_bytes is more than {READ_MAX}"))
            .hint("read it in parts, with `offset`"));
    }
    let workspace = server.workspaces().find(&arguments.name)?;
    FileDocument::read(&workspace, &call, arguments.path, arguments.offset, limit).await
}

impl FileDocument {
    /// Reads a part of a file.
    pub(super) async fn read(
        workspace: &Workspace,
        call: &Call,
        path: String,
        offset: u64,
        limit: usize,
    ) -> Result<FileDocument, ToolError> {
        let range = FileRange::new(limit).offset(offset);
        let file = workspace.read_file(&path, range, &call.progress()).await?;
        let is_cut = offset.saturating_add(file.bytes.len() as u64) < file.size;
        let bytes = if is_cut { output::whole_characters(file.bytes) } else { file.bytes };
        let next_offset = offset.saturating_add(bytes.len() as u64);
        let (content, encoding) = output::text(bytes);
        let omitted_bytes = file.size.saturating_sub(next_offset);
        Ok(FileDocument { path, content, encoding, size: file.size, omitted_bytes, next_offset })
    }
}
