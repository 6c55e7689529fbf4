// SPDX-License-Identifier: Apache-2.0
//! Policy documents as people name them: files, directories, standard input.

use crate::types::{LONGEST_BODY, PolicyDocument};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Why there is nothing to send.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    #[error("standard input (-) can be read only once")]
    InputTwice,
    #[error("cannot {what}: {source}")]
    Unreadable { what: String, source: io::Error },
    #[error("{0}: more than {mib} MiB of policy at once; import it in parts", mib = LONGEST_BODY >> 20)]
    TooLong(String),
    #[error("{} holds no *.yaml, *.yml or *.json", .0.display())]
    Empty(PathBuf),
}

fn unreadable(what: String) -> impl FnOnce(io::Error) -> DocumentError {
    |source| DocumentError::Unreadable { what, source }
}

/// Reads everything before anything is sent, and no more than the agent would take. `-` is `stdin`; of a directory, its files in
/// YAML and JSON, by name.
///
/// # Errors
/// The first path that cannot be read, holds no policy, or is too long with those before it.
pub fn read(paths: &[String], stdin: &mut impl Read) -> Result<Vec<PolicyDocument>, DocumentError> {
    if paths.iter().filter(|path| *path == "-").count() > 1 {
        return Err(DocumentError::InputTwice);
    }
    let mut documents = Vec::new();
    let mut left = LONGEST_BODY;
    for path in paths {
        if path == "-" {
            documents.push(document("stdin".to_owned(), stdin, &mut left)?);
            continue;
        }
        let kind = fs::metadata(path).map_err(unreadable(format!("read {path}")))?;
        let files = if kind.is_dir() { directory(Path::new(path))? } else { vec![PathBuf::from(path)] };
        for file in files {
            let mut open = fs::File::open(&file).map_err(unreadable(format!("read {}", file.display())))?;
            documents.push(document(file.display().to_string(), &mut open, &mut left)?);
        }
    }
    Ok(documents)
}

/// Takes what it reads from `left`, bytes.
fn document(name: String, from: &mut impl Read, left: &mut usize) -> Result<PolicyDocument, DocumentError> {
    let mut text = String::new();
    let more = *left as u64 + 1;
    from.take(more).read_to_string(&mut text).map_err(unreadable(format!("read {name}")))?;
    let Some(rest) = left.checked_sub(text.len()) else { return Err(DocumentError::TooLong(name)) };
    *left = rest;
    Ok(PolicyDocument { name, text })
}

/// Policy files of a directory, by name.
fn directory(dir: &Path) -> Result<Vec<PathBuf>, DocumentError> {
    let cannot = |source| DocumentError::Unreadable { what: format!("list {}", dir.display()), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        let wanted = path.extension().and_then(|e| e.to_str()).is_some_and(|e| matches!(e, "yaml" | "yml" | "json"));
        // A dangling link counts as a file, so that reading it says what is wrong.
        if wanted && !path.is_dir() {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(DocumentError::Empty(dir.to_owned()));
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_gives_its_policy_files_by_name() {
        let dir = tempfile::TempDir::new().unwrap();
        for name in ["b.json", "a.yml", "c.yaml", "notes.txt"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        fs::create_dir(dir.path().join("d.yaml")).unwrap();
        let path = dir.path().display().to_string();
        let found = read(&[path, "-".to_owned()], &mut "from stdin".as_bytes()).unwrap();
        let texts: Vec<&str> = found.iter().map(|d| d.text.as_str()).collect();
        assert_eq!(texts, ["a.yml", "b.json", "c.yaml", "from stdin"]);
        assert_eq!(found[3].name, "stdin");
        assert!(found[0].name.ends_with("/a.yml"));
    }

    #[test]
    fn what_the_agent_would_not_take_is_not_read() {
        let told = read(&["-".to_owned()], &mut io::repeat(b'#')).unwrap_err().to_string();
        assert_eq!(told, "stdin: more than 64 MiB of policy at once; import it in parts");
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(LONGEST_BODY as u64 - 1).unwrap();
        let path = file.path().display().to_string();
        assert_eq!(read(&[path.clone(), "-".to_owned()], &mut "#".as_bytes()).unwrap().len(), 2);
        let told = read(&[path, "-".to_owned()], &mut "##".as_bytes()).unwrap_err().to_string();
        assert!(told.starts_with("stdin: more than"), "{told}");
    }
}
