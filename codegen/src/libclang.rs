// SPDX-License-Identifier: Apache-2.0
//! A quick look at a program through libclang: parsing takes a twentieth of a compilation, and starts no process.
//! libclang generates no code, so this answers only whether the front end is content.

use crate::clang;
use crate::diagnostics::{Diagnostic, Mapper, Severity};
use crate::key::{Build, Program};
use crate::render::Rendered;
use crate::templates::{RENDERED, Templates};
use clang_sys::*;
use std::ffi::{CStr, CString, c_char, c_uint};
use std::path::Path;
use std::ptr::null_mut;
use std::sync::{Arc, OnceLock};

/// libclang cannot answer here; `clang -fsyntax-only` can.
#[derive(Debug, Clone, thiserror::Error)]
#[error("libclang is not available: {0}")]
pub struct LibclangUnavailable(pub String);

/// The library stays loaded: finding it takes a hundred times as long as a check.
fn library() -> Result<Arc<SharedLibrary>, LibclangUnavailable> {
    static LIBRARY: OnceLock<Result<Arc<SharedLibrary>, LibclangUnavailable>> = OnceLock::new();
    LIBRARY.get_or_init(|| load_manually().map(Arc::new).map_err(LibclangUnavailable)).clone()
}

/// Checks the syntax of `rendered`'s program; the rendered header is given to libclang in memory. Blocks.
pub fn check(templates: &Templates, rendered: &Rendered, build: Build) -> Result<Vec<Diagnostic>, LibclangUnavailable> {
    let unavailable = |e: &dyn std::fmt::Display| LibclangUnavailable(e.to_string());
    // The functions of clang_sys look the library up by thread.
    set_library(Some(library()?));
    let dir = tempfile::Builder::new().prefix("pilus-check-").tempdir().map_err(|e| unavailable(&e))?;
    templates.lay_out(dir.path(), rendered).map_err(|e| unavailable(&e))?;
    let parse = Parse::new(dir.path(), rendered, build)?;
    let mapper = Mapper { templates, program: rendered.program };
    parse.diagnostics(dir.path(), &mapper)
}

/// Arguments of one parse; everything that libclang gets a pointer to lives here.
struct Parse {
    source: CString,
    arguments: Vec<CString>,
    header_path: CString,
    header: CString,
}

impl Parse {
    fn new(dir: &Path, rendered: &Rendered, build: Build) -> Result<Parse, LibclangUnavailable> {
        let text = |s: String| CString::new(s).map_err(|_| LibclangUnavailable("a path or header contains a zero byte".to_owned()));
        let program: Program = rendered.program;
        let mut arguments = Vec::new();
        for flag in clang::FLAGS {
            arguments.push(text((*flag).to_owned())?);
        }
        arguments.push(text(clang::own_flag(build).to_owned())?);
        for include in clang::INCLUDES {
            arguments.push(text(format!("-I{}", dir.join(include).display()))?);
        }
        Ok(Parse {
            source: text(dir.join(program.file()).display().to_string())?,
            arguments,
            header_path: text(dir.join(RENDERED).join(program.header()).display().to_string())?,
            header: text(rendered.header.clone())?,
        })
    }

    fn diagnostics(&self, dir: &Path, mapper: &Mapper<'_>) -> Result<Vec<Diagnostic>, LibclangUnavailable> {
        let arguments: Vec<*const c_char> = self.arguments.iter().map(|a| a.as_ptr()).collect();
        let mut unsaved = [CXUnsavedFile {
            Filename: self.header_path.as_ptr(),
            Contents: self.header.as_ptr(),
            Length: self.header.as_bytes().len() as _,
        }];
        // SAFETY: the library is loaded on this thread (`check` did it). Every pointer given to libclang is to memory owned by
        // `self`, `arguments` or `unsaved`, which outlive the calls; counts are those of the arrays. The index and the unit are
        // used on this thread only, not after `Unit` drops, which disposes of the unit before the index.
        unsafe {
            let index = clang_createIndex(0, 0);
            let mut unit = Unit { index, unit: null_mut() };
            let code = clang_parseTranslationUnit2(
                index,
                self.source.as_ptr(),
                arguments.as_ptr(),
                arguments.len() as _,
                unsaved.as_mut_ptr(),
                unsaved.len() as c_uint,
                CXTranslationUnit_None,
                &mut unit.unit,
            );
            if code != CXError_Success || unit.unit.is_null() {
                return Err(LibclangUnavailable(format!("libclang could not parse the program (error {code})")));
            }
            let mut found = Vec::new();
            for n in 0..clang_getNumDiagnostics(unit.unit) {
                let diagnostic = clang_getDiagnostic(unit.unit, n);
                push(diagnostic, dir, mapper, &mut found);
                clang_disposeDiagnostic(diagnostic);
            }
            Ok(found)
        }
    }
}

/// Disposes of both in the right order, also on the way out of an error.
struct Unit {
    index: CXIndex,
    unit: CXTranslationUnit,
}

impl Drop for Unit {
    fn drop(&mut self) {
        // SAFETY: made by the matching libclang calls on this thread, and disposed of only here.
        unsafe {
            if !self.unit.is_null() {
                clang_disposeTranslationUnit(self.unit);
            }
            clang_disposeIndex(self.index);
        }
    }
}

/// Adds a diagnostic and the notes below it.
///
/// # Safety
/// `diagnostic` is live, and libclang is loaded on this thread.
#[expect(non_upper_case_globals, reason = "libclang's own names")]
unsafe fn push(diagnostic: CXDiagnostic, dir: &Path, mapper: &Mapper<'_>, found: &mut Vec<Diagnostic>) {
    // SAFETY: as the caller promises. The out-pointers are to locals. `children` belongs to `diagnostic`, so neither it nor its
    // members are disposed of here.
    unsafe {
        let severity = match clang_getDiagnosticSeverity(diagnostic) {
            CXDiagnostic_Ignored => return,
            CXDiagnostic_Note => Severity::Note,
            CXDiagnostic_Warning => Severity::Warning,
            _ => Severity::Error,
        };
        let (mut file, mut line, mut column, mut offset) = (null_mut(), 0, 0, 0);
        // The place in a file where a macro was used: the one that clang's own text output leads with.
        clang_getFileLocation(clang_getDiagnosticLocation(diagnostic), &mut file, &mut line, &mut column, &mut offset);
        let name = if file.is_null() { String::new() } else { owned(clang_getFileName(file)) };
        let relative = Path::new(&name).strip_prefix(dir).map_or(name.as_str(), |p| p.to_str().unwrap_or(&name));
        let message = owned(clang_getDiagnosticSpelling(diagnostic)).replace(&format!("{}/", dir.display()), "");
        // The chain of includes is no remark on the program; clang's text output has it outside its diagnostics.
        if severity != Severity::Note || !message.starts_with("in file included from ") {
            found.push(mapper.map(relative, line, column, severity, &message));
        }
        let children = clang_getChildDiagnostics(diagnostic);
        if !children.is_null() {
            for n in 0..clang_getNumDiagnosticsInSet(children) {
                push(clang_getDiagnosticInSet(children, n), dir, mapper, found);
            }
        }
    }
}

/// Takes a libclang string.
///
/// # Safety
/// `string` was just returned by libclang and is not used afterwards.
unsafe fn owned(string: CXString) -> String {
    // SAFETY: as the caller promises; the characters are copied before the string is disposed of.
    unsafe {
        let chars = clang_getCString(string);
        let text = if chars.is_null() { String::new() } else { CStr::from_ptr(chars).to_string_lossy().into_owned() };
        clang_disposeString(string);
        text
    }
}
