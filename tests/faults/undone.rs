//! What failed is not done by the mount after.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::common::stand::{Stand, end};
use crate::common::{Watchdog, skip};
use crate::{inject, require};

#[test]
fn a_truncation_of_a_partial_file_that_failed_is_not_done_later() {
    require!(skip::privileged());
    require!(skip::program("strace"));
    let _limit = Watchdog::new("undone", Duration::from_secs(120));
    let stand = Stand::new("undone");
    fs::write(stand.lower.join("big"), vec![7; 100_000]).unwrap();
    let options = "partial=8K,complete=off";
    let mut mount = stand.acetate(options).mount();
    let file = OpenOptions::new()
        .write(true)
        .open(mount.join("big"))
        .unwrap();
    file.write_all_at(b"x", 50_000).unwrap();
    let log = stand.scratch.join("strace.log");
    let pid = mount.pid().unwrap();
    let (result, hit) = inject::failing(pid, &log, "ftruncate", "EIO", 1, || file.set_len(60_000));
    assert!(hit);
    assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EIO));
    mount.kill();
    drop((file, mount));
    let mount = stand.acetate(options).mount();
    let mut model = vec![7; 100_000];
    model[50_000] = b'x';
    assert!(fs::read(mount.join("big")).unwrap() == model);
    end(mount);
}
