//! The memory of this process.
#![allow(unsafe_code)]

use std::io;
use std::path::Path;

/// Gives memory that was freed back to the system, where the allocator keeps it.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes a number, and locks what it looks at by itself.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// How many bytes of memory the control groups of this process leave it at most, if any of them has a limit. Where they
/// cannot be read, nothing is known of one.
pub fn limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    groups.lines().filter_map(limit_of).min()
}

/// The least limit of a group, as `/proc/self/cgroup` names it, and those above it.
fn limit_of(line: &str) -> Option<u64> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, group) = (fields.next()?, fields.next()?);
    let (base, file) = match controllers {
        "" => ("/sys/fs/cgroup", "memory.max"),
        _ if controllers.split(',').any(|name| name == "memory") => {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        }
        _ => return None,
    };
    let base = Path::new(base);
    let own = base.join(group.trim_start_matches('/'));
    own.ancestors()
        .take_while(|dir| dir.starts_with(base))
        .filter_map(|dir| std::fs::read_to_string(dir.join(file)).ok())
        // Where there is none, it is a word or more than there can be.
        .filter_map(|text| text.trim().parse().ok())
        .filter(|&limit: &u64| limit < 1 << 50)
        .min()
}

/// Where the code of this process lies: it is looked up while `/proc` can be read.
#[derive(Debug)]
pub struct Code(Vec<(usize, usize)>);

impl Code {
    /// Finds it. What is mapped now must stay mapped.
    pub fn find() -> io::Result<Code> {
        Ok(Code(code(&std::fs::read_to_string("/proc/self/maps")?)))
    }

    /// Lets go of its pages: most of what ran until now runs only at the start. What runs again is mapped again from the
    /// page cache.
    pub fn let_go(&self) -> io::Result<()> {
        for &(start, length) in &self.0 {
            let start = start as *mut libc::c_void;
            // SAFETY: the range is a private mapping of a file that is not writable and holds code, which nothing in this
            // process changes or unmaps, so that its pages are the file's own: they come back as they were when they are
            // used next.
            if unsafe { libc::madvise(start, length, libc::MADV_DONTNEED) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

/// Start and length of each mapping of a file that can be run and not written, of a `/proc/PID/maps`.
fn code(maps: &str) -> Vec<(usize, usize)> {
    let range = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (range, rights) = (fields.next()?, fields.next()?);
        let path = fields.nth(3)?;
        if rights != "r-xp" || !path.starts_with('/') {
            return None;
        }
        let (start, end) = range.split_once('-')?;
        let start = usize::from_str_radix(start, 16).ok()?;
        let end = usize::from_str_radix(end, 16).ok()?;
        Some((start, end.checked_sub(start)?))
    };
    maps.lines().filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_is_dropped() {
        let maps = "\
55c970a2a000-55c970f15000 r--p 00000000 fe:00 6153088    /usr/bin/acetate
55c970f15000-55c970f17000 r-xp 004ea000 fe:00 6153088    /usr/bin/acetate
55c971be4000-55c971be8000 rw-p 01123000 fe:00 6153088    /usr/bin/acetate
55c971bf4000-55c971bf8000 rwxp 01123000 fe:00 6153088    /usr/bin/acetate
55c99e181000-55c99e225000 rw-p 00000000 00:00 0          [heap]
7fb9e4b00000-7fb9e4b01000 r-xp 00000000 00:00 0
7ffd86541000-7ffd86543000 r-xp 00000000 00:00 0          [vdso]
";
        assert_eq!(code(maps), [(0x55c9_70f1_5000, 0x2000)]);
    }

    #[test]
    fn the_program_goes_on_without_its_code_in_memory() {
        Code::find().unwrap().let_go().unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert!(!code(&maps).is_empty());
    }
}
