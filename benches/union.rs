//! Lookup and copy-up inside the library, without FUSE: `cargo bench --bench union`, as root for the kernel's kind of marks.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(missing_docs)]

use std::ffi::{OsStr, OsString};
use std::fs;
use std::hint::black_box;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use acetate::layer::Layer;
use acetate::layer::dir::{DirLayer, LayerOptions};
use acetate::layer::fdcache::FdCache;
use acetate::layer::format::OverrideStat;
use acetate::layer::upper::{AccessTimes, Namespace, Upper, UpperOptions};
use acetate::union::{
    Backing, BackingOpener, Caller, DirEntry, Lookup, NodeId, Params, ROOT, SetAttr, Union,
    WriteFlags,
};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// How many names each directory has.
const FILES: usize = 1000;

/// A kernel without passthrough.
struct NoBacking;

impl BackingOpener for NoBacking {
    fn open_backing(&self, _: BorrowedFd<'_>, _: bool) -> io::Result<Backing> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

struct Rig {
    dir: tempfile::TempDir,
    lowers: Vec<PathBuf>,
    /// Uppers are used once.
    uppers: usize,
}

impl Rig {
    /// The files lie in the lowest of so many layers; those above have the directory and a name of their own in it.
    fn new(layers: usize, size: usize) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let lowers: Vec<PathBuf> = (0..layers)
            .map(|i| {
                let layer = dir.path().join(format!("lower{i}"));
                fs::create_dir_all(layer.join("d")).unwrap();
                fs::write(layer.join(format!("d/above{i}")), "x").unwrap();
                layer
            })
            .collect();
        let files = if size > 4096 { 1 } else { FILES };
        for i in 0..files {
            fs::write(lowers[layers - 1].join(format!("d/f{i}")), vec![7; size]).unwrap();
        }
        Rig {
            dir,
            lowers,
            uppers: 0,
        }
    }

    /// A union over an empty upper, and the directory's node.
    fn union(&mut self) -> (Union, NodeId) {
        self.uppers += 1;
        let at = |name: &str| self.dir.path().join(format!("{name}{}", self.uppers));
        let (upper, work) = (at("upper"), at("work"));
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&work).unwrap();
        let cache = Arc::new(FdCache::for_this_process());
        let lowers = self.lowers.iter().map(|path| {
            let layer = DirLayer::open(path, LayerOptions::default(), cache.clone()).unwrap();
            Arc::new(layer) as Arc<dyn Layer>
        });
        let namespace = if rustix::process::geteuid().is_root() {
            Namespace::Trusted
        } else {
            Namespace::User
        };
        let options = UpperOptions {
            namespace,
            volatile: true,
            override_stat: OverrideStat::Off,
            access_times: AccessTimes::AsBelow,
        };
        let upper = Upper::open(&upper, &work, options, cache.clone()).unwrap();
        let params = Params {
            no_sync: true,
            ..Params::default()
        };
        let union = Union::new(lowers.collect(), Some(upper), params).unwrap();
        let node = find(&union, ROOT, OsStr::new("d"));
        (union, node)
    }
}

fn find(union: &Union, parent: NodeId, name: &OsStr) -> NodeId {
    match union.lookup(parent, name).unwrap() {
        Lookup::Found(entry) => entry.node,
        other => panic!("{name:?}: {other:?}"),
    }
}

fn me() -> Caller {
    Caller {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        pid: 0,
    }
}

fn names(prefix: &str) -> Vec<OsString> {
    (0..FILES).map(|i| format!("{prefix}{i}").into()).collect()
}

fn lookup(c: &mut Criterion) {
    let mut group = c.benchmark_group("lookup");
    group
        .throughput(Throughput::Elements(FILES as u64))
        .sample_size(10);
    for layers in [1, 10, 100] {
        let mut rig = Rig::new(layers, 100);
        for (kind, names) in [("first", names("f")), ("missing", names("none"))] {
            group.bench_function(BenchmarkId::new(kind, layers), |b| {
                b.iter_batched(
                    || rig.union(),
                    |(union, dir)| {
                        for name in &names {
                            black_box(union.lookup(dir, name).unwrap());
                        }
                        union
                    },
                    BatchSize::PerIteration,
                );
            });
        }
        let (union, dir) = rig.union();
        let known = names("f");
        group.bench_function(BenchmarkId::new("again", layers), |b| {
            b.iter(|| {
                for name in &known {
                    black_box(union.lookup(dir, name).unwrap());
                }
            });
        });
    }
    group.finish();
}

fn copy_up(c: &mut Criterion) {
    let mut group = c.benchmark_group("copy-up");
    group.sample_size(10);
    for size in [4096, 1 << 20, 16 << 20] {
        let mut rig = Rig::new(1, size);
        group.bench_function(BenchmarkId::new("write a block", size), |b| {
            b.iter_batched(
                || {
                    let (union, dir) = rig.union();
                    let node = find(&union, dir, OsStr::new("f0"));
                    (union, node)
                },
                |(union, node)| {
                    let opened = union.open(&me(), node, libc::O_WRONLY, &NoBacking).unwrap();
                    let flags = WriteFlags::default();
                    union.write(opened.handle, 0, &[1; 4096], flags).unwrap();
                    union.release(opened.handle);
                    union
                },
                BatchSize::PerIteration,
            );
        });
        group.bench_function(BenchmarkId::new("chmod", size), |b| {
            b.iter_batched(
                || {
                    let (union, dir) = rig.union();
                    let node = find(&union, dir, OsStr::new("f0"));
                    (union, node)
                },
                |(union, node)| {
                    let set = SetAttr {
                        mode: Some(0o600),
                        ..SetAttr::default()
                    };
                    union.setattr(&me(), node, &set).unwrap();
                    union
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

/// The same work by each of so many threads on one union: where nothing is contended, a processor more changes no time.
fn threads(c: &mut Criterion) {
    let mut group = c.benchmark_group("threads");
    group.sample_size(10);
    let mut rig = Rig::new(10, 100);
    for count in [1usize, 2, 4] {
        group.throughput(Throughput::Elements((FILES * count) as u64));
        let (union, dir) = rig.union();
        let names = names("f");
        let known: Vec<NodeId> = names.iter().map(|name| find(&union, dir, name)).collect();
        group.bench_function(BenchmarkId::new("lookup again", count), |b| {
            b.iter_custom(|times| {
                together(count, times, |_| {
                    for name in &names {
                        black_box(union.lookup(dir, name).unwrap());
                    }
                })
            });
        });
        group.bench_function(BenchmarkId::new("getattr", count), |b| {
            b.iter_custom(|times| {
                together(count, times, |_| {
                    for node in &known {
                        black_box(union.getattr(*node, None).unwrap());
                    }
                })
            });
        });
        group.bench_function(BenchmarkId::new("list", count), |b| {
            b.iter_custom(|times| {
                together(count, times, |_| {
                    let mut seen = 0;
                    let mut count = |_: DirEntry<'_>| {
                        seen += 1;
                        false
                    };
                    union.readdir(dir, 0, &mut count).unwrap();
                    assert!(seen > FILES);
                })
            });
        });
        // Each thread has files of its own, and in the second case all have the same.
        for (name, own) in [("open, read, close", true), ("open one file", false)] {
            group.bench_function(BenchmarkId::new(name, count), |b| {
                b.iter_custom(|times| {
                    together(count, times, |thread| {
                        let mut buffer = [0; 4096];
                        for i in 0..known.len() {
                            let node = if own {
                                known[(i + thread * FILES / count) % known.len()]
                            } else {
                                known[0]
                            };
                            let opened =
                                union.open(&me(), node, libc::O_RDONLY, &NoBacking).unwrap();
                            let read = union.read(opened.handle, 0, &mut buffer).unwrap();
                            assert_eq!(read, 100);
                            union.release(opened.handle);
                        }
                    })
                });
            });
        }
        // All of it together stays the same here.
        group.throughput(Throughput::Elements(FILES as u64));
        group.bench_function(BenchmarkId::new("copy up attributes", count), |b| {
            b.iter_custom(|times| {
                let mut sum = Duration::ZERO;
                for _ in 0..times {
                    let (union, dir) = rig.union();
                    let nodes: Vec<NodeId> =
                        names.iter().map(|name| find(&union, dir, name)).collect();
                    let share = nodes.len() / count;
                    sum += together(count, 1, |thread| {
                        for node in &nodes[thread * share..(thread + 1) * share] {
                            let set = SetAttr {
                                mode: Some(0o600),
                                ..SetAttr::default()
                            };
                            union.setattr(&me(), *node, &set).unwrap();
                        }
                    });
                }
                sum
            });
        });
    }
    group.finish();
}

/// How long it takes until each of so many threads has done it so often.
fn together(threads: usize, times: u64, act: impl Fn(usize) + Sync) -> Duration {
    let start = Barrier::new(threads + 1);
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|number| {
                let (start, act) = (&start, &act);
                scope.spawn(move || {
                    start.wait();
                    for _ in 0..times {
                        act(number);
                    }
                })
            })
            .collect();
        start.wait();
        let begin = Instant::now();
        for thread in running {
            thread.join().unwrap();
        }
        begin.elapsed()
    })
}

criterion_group!(benches, lookup, copy_up, threads);
criterion_main!(benches);
