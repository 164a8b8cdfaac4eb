//! A server of the test, a client on its socket, and what the mounts that it hands out are mounted by.

#![allow(unreachable_pub)]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use acetate::snapshotter::proto::*;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount, umount};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use crate::common::{Scratch, program};

const LIMIT: Duration = Duration::from_secs(60);

/// A server that ends with the test.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// Its socket.
    pub address: PathBuf,
}

impl Server {
    /// Starts it, and waits until its socket answers.
    pub fn start(scratch: &Scratch, flags: &[&str]) -> Server {
        let address = scratch.join("s.sock");
        let child = command(scratch, "root")
            .args(flags)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut server = Server { child, address };
        let begin = Instant::now();
        while std::os::unix::net::UnixStream::connect(&server.address).is_err() {
            assert!(begin.elapsed() < LIMIT, "the server does not answer");
            let ended = server.child.try_wait().unwrap();
            assert!(ended.is_none(), "the server ended: {ended:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
        server
    }

    /// SIGTERM; the exit code.
    pub fn terminate(mut self) -> Option<i32> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(begin.elapsed() < LIMIT, "the server does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }
}

/// The command of a server in a scratch directory, on a root there.
pub fn command(scratch: &Scratch, root: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_acetate"));
    command
        .arg("snapshotter")
        .arg("--address")
        .arg(scratch.join("s.sock"))
        .arg("--root")
        .arg(scratch.join(root));
    command
}

/// A client of the service, which waits for each answer.
pub struct Client {
    runtime: tokio::runtime::Runtime,
    grpc: Grpc<Channel>,
}

type Answer<A> = Result<A, Status>;

impl Client {
    /// Connects.
    pub fn new(address: &Path) -> Client {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let address = format!("unix://{}", address.display());
        let endpoint = Endpoint::from_shared(address).unwrap().timeout(LIMIT * 2);
        let channel = runtime.block_on(endpoint.connect()).unwrap();
        Client {
            runtime,
            grpc: Grpc::new(channel),
        }
    }

    /// One call.
    pub fn call<Q, A>(&mut self, name: &str, request: Q) -> Answer<A>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let path: PathAndQuery = format!("/{SERVICE}/{name}").parse().unwrap();
        let grpc = &mut self.grpc;
        self.runtime.block_on(async {
            grpc.ready()
                .await
                .map_err(|e| Status::unavailable(e.to_string()))?;
            let codec = ProstCodec::<Q, A>::default();
            let answer = grpc
                .unary(tonic::Request::new(request), path, codec)
                .await?;
            Ok(answer.into_inner())
        })
    }

    /// Asks, and goes away after a while whether it was answered or not.
    pub fn abandon(&mut self, name: &str, request: impl prost::Message + 'static, after: Duration) {
        let path: PathAndQuery = format!("/{SERVICE}/{name}").parse().unwrap();
        let grpc = &mut self.grpc;
        self.runtime.block_on(async {
            grpc.ready().await.unwrap();
            let codec = ProstCodec::<_, Empty>::default();
            let call = grpc.unary(tonic::Request::new(request), path, codec);
            // A message of another type has unknown fields only, which is no error.
            if let Ok(Err(status)) = tokio::time::timeout(after, call).await {
                panic!("{name}: {status}");
            }
        });
    }

    pub fn create(
        &mut self,
        call: &str,
        key: &str,
        parent: &str,
        labels: &[(&str, &str)],
    ) -> Answer<Vec<Mount>> {
        let request = CreateRequest {
            snapshotter: "acetate".into(),
            key: key.into(),
            parent: parent.into(),
            labels: map(labels),
        };
        let answer: MountsResponse = self.call(call, request)?;
        Ok(answer.mounts)
    }

    pub fn prepare(&mut self, key: &str, parent: &str) -> Answer<Vec<Mount>> {
        self.create("Prepare", key, parent, &[])
    }

    pub fn view(&mut self, key: &str, parent: &str) -> Answer<Vec<Mount>> {
        self.create("View", key, parent, &[])
    }

    fn key(key: &str) -> KeyRequest {
        KeyRequest {
            snapshotter: "acetate".into(),
            key: key.into(),
        }
    }

    pub fn mounts(&mut self, key: &str) -> Answer<Vec<Mount>> {
        let answer: MountsResponse = self.call("Mounts", Client::key(key))?;
        Ok(answer.mounts)
    }

    pub fn commit(&mut self, name: &str, key: &str) -> Answer<()> {
        self.commit_with(name, key, "", &[])
    }

    pub fn commit_with(
        &mut self,
        name: &str,
        key: &str,
        parent: &str,
        labels: &[(&str, &str)],
    ) -> Answer<()> {
        let request = CommitRequest {
            snapshotter: "acetate".into(),
            name: name.into(),
            key: key.into(),
            labels: map(labels),
            parent: parent.into(),
        };
        self.call::<_, Empty>("Commit", request).map(|_| ())
    }

    pub fn remove(&mut self, key: &str) -> Answer<()> {
        self.call::<_, Empty>("Remove", Client::key(key))
            .map(|_| ())
    }

    pub fn cleanup(&mut self) -> Answer<()> {
        self.call::<_, Empty>("Cleanup", CleanupRequest::default())
            .map(|_| ())
    }

    pub fn stat(&mut self, key: &str) -> Answer<Info> {
        let answer: InfoResponse = self.call("Stat", Client::key(key))?;
        Ok(answer.info.unwrap())
    }

    pub fn update(&mut self, info: Info, paths: &[&str]) -> Answer<Info> {
        let request = UpdateRequest {
            snapshotter: "acetate".into(),
            info: Some(info),
            update_mask: Some(FieldMask {
                paths: paths.iter().map(|path| (*path).to_owned()).collect(),
            }),
        };
        let answer: InfoResponse = self.call("Update", request)?;
        Ok(answer.info.unwrap())
    }

    pub fn usage(&mut self, key: &str) -> Answer<UsageResponse> {
        self.call("Usage", Client::key(key))
    }

    /// The names of what the filters let through, sorted.
    pub fn list(&mut self, filters: &[&str]) -> Answer<Vec<String>> {
        let path: PathAndQuery = format!("/{SERVICE}/List").parse().unwrap();
        let request = ListRequest {
            snapshotter: "acetate".into(),
            filters: filters.iter().map(|f| (*f).to_owned()).collect(),
        };
        let grpc = &mut self.grpc;
        self.runtime.block_on(async {
            grpc.ready()
                .await
                .map_err(|e| Status::unavailable(e.to_string()))?;
            let codec = ProstCodec::<ListRequest, ListResponse>::default();
            let mut parts = grpc
                .server_streaming(tonic::Request::new(request), path, codec)
                .await?
                .into_inner();
            let mut names = Vec::new();
            while let Some(part) = parts.message().await? {
                names.extend(part.info.into_iter().map(|info| info.name));
            }
            names.sort();
            Ok(names)
        })
    }
}

pub fn map(labels: &[(&str, &str)]) -> HashMap<String, String> {
    let pairs = labels
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    pairs.collect()
}

/// The code of a call that must fail.
#[track_caller]
pub fn code<A: std::fmt::Debug>(answer: Answer<A>) -> Code {
    answer.unwrap_err().code()
}

/// Makes mounts as containerd does.
pub fn mount_all(mounts: &[Mount], target: &Path) {
    fs::create_dir_all(target).unwrap();
    for given in mounts {
        if let Some(kind) = given.r#type.strip_prefix("fuse3.") {
            let mut helper = Command::new("mount.fuse3");
            helper.arg(&given.source).arg(target);
            for option in &given.options {
                helper.arg("-o").arg(option);
            }
            program::must(helper.arg("-t").arg(kind), LIMIT);
            continue;
        }
        assert_eq!(given.r#type, "bind", "{given:?}");
        let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(
            Some(given.source.as_str()),
            target,
            None::<&str>,
            bind,
            None::<&str>,
        )
        .unwrap();
        if given.options.iter().any(|option| option == "ro") {
            let again = bind | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(None::<&str>, target, None::<&str>, again, None::<&str>).unwrap();
        }
    }
}

/// A mount of the test.
#[derive(Debug)]
pub struct Mounted(PathBuf);

impl Mounted {
    pub fn new(mounts: &[Mount], target: &Path) -> Mounted {
        mount_all(mounts, target);
        Mounted(target.to_owned())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    /// A program that another test starts has this one's descriptors for a moment, those in the mount as well.
    fn drop(&mut self) {
        let begin = Instant::now();
        let mut done = umount(&self.0);
        while done == Err(Errno::EBUSY) && begin.elapsed() < LIMIT {
            std::thread::sleep(Duration::from_millis(2));
            done = umount(&self.0);
        }
        if let Err(e) = done {
            eprintln!("umount {}: {e}", self.0.display());
        }
    }
}
