// SPDX-License-Identifier: Apache-2.0
//! The development machine's description, as Vagrant reads it. No machine is started.

use pilus_e2e::runtime::{done, refused, skipped, tool};
use std::path::Path;
use std::process::Command;

fn vagrant(home: &Path, dir: &Path, args: &[&str]) -> Command {
    let mut command = tool("vagrant");
    command.args(args).current_dir(dir).env("VAGRANT_DEFAULT_PROVIDER", "libvirt");
    // Nothing of it goes beside the sources.
    command.env("VAGRANT_HOME", home.join("home")).env("VAGRANT_DOTFILE_PATH", home.join("state")).env("HOME", home);
    command
}

#[test]
fn the_development_machine_is_described_rightly() {
    if skipped(&["vagrant"]) {
        return;
    }
    let home = tempfile::tempdir().expect("directory");
    if !done(&mut vagrant(home.path(), home.path(), &["plugin", "list"])).contains("vagrant-libvirt") {
        return println!("skipped: vagrant-libvirt is not installed");
    }
    let here = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../vagrant"));
    done(&mut vagrant(home.path(), here, &["validate"]));
    // It would tell if something were wrong.
    let text = std::fs::read_to_string(here.join("Vagrantfile")).expect("Vagrantfile");
    for (right, wrong) in [("hostname", "hostnme"), ("machine.cpus = 4", "machine.cups = 4"), ("provision.sh", "nowhere.sh")] {
        let dir = home.path().join(wrong.split(' ').next().unwrap_or(wrong));
        std::fs::create_dir(&dir).expect("directory");
        std::fs::copy(here.join("provision.sh"), dir.join("provision.sh")).expect("copy");
        assert!(text.contains(right), "{right}");
        std::fs::write(dir.join("Vagrantfile"), text.replace(right, wrong)).expect("file");
        let why = refused(&mut vagrant(home.path(), &dir, &["validate"]));
        assert!(!why.is_empty(), "{wrong}");
    }
}
