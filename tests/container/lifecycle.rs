//! What docker's users do with containers.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::require;
use crate::rig::{Rig, able};

#[test]
fn a_program_is_run_as_it_was_asked_for() {
    require!(able());
    let rig = Rig::new("asked");
    let (code, output) = rig.with_input(&["run", "--rm", "-i", "bb", "cat"], b"\xff\0in");
    assert_eq!((code, output), (Some(0), b"\xff\0in".to_vec()));
    let script = "echo out; echo err >&2; exit 42";
    let output = rig
        .command(&["run", "--rm", "bb", "sh", "-c", script])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(42));
    assert_eq!(output.stdout, b"out\n");
    assert_eq!(output.stderr, b"err\n");
    // Of a child, as nothing kills the first process of a container from inside.
    rig.fails(
        137,
        &[
            "run",
            "--rm",
            "bb",
            "sh",
            "-c",
            "sh -c 'kill -9 $$'; exit $?",
        ],
    );
    let said = rig.must(&[
        "run",
        "--rm",
        "-u",
        "web",
        "-w",
        "/tmp",
        "-e",
        "A=b=c",
        "--hostname",
        "hh",
        "bb",
        "sh",
        "-c",
        "id; echo $PWD $A $FROM_IMAGE $HOME; hostname; cat /etc/hostname; cat /etc/hosts",
    ]);
    let lines: Vec<&str> = said.lines().collect();
    assert!(
        lines[0].starts_with("uid=33(web) gid=33(web) groups=") && lines[0].contains("44(more)"),
        "{said}"
    );
    assert_eq!(lines[1..4], ["/tmp b=c yes /srv", "hh", "hh"]);
    assert!(said.contains("127.0.0.1\tlocalhost"), "{said}");
    let host = rig.scratch.dir("host");
    fs::write(host.join("file"), "host\n").unwrap();
    let volume = format!("{}:/data", host.display());
    rig.must(&[
        "run",
        "--rm",
        "-v",
        &volume,
        "--read-only",
        "bb",
        "sh",
        "-c",
        "cat /data/file; echo x > /data/new",
    ]);
    assert_eq!(fs::read_to_string(host.join("new")).unwrap(), "x\n");
    let volume = format!("{volume}:ro");
    let script = "touch /data/y || touch /y || exit 3";
    rig.fails(
        3,
        &[
            "run",
            "--rm",
            "-v",
            &volume,
            "--read-only",
            "bb",
            "sh",
            "-c",
            script,
        ],
    );
    assert_eq!(
        rig.must(&[
            "run",
            "--rm",
            "--ulimit",
            "nofile=99:100",
            "bb",
            "sh",
            "-c",
            "ulimit -n"
        ]),
        "99\n"
    );
    let env = rig.scratch.join("env");
    fs::write(&env, "# comment\nB=1\n\nC=two words\n").unwrap();
    let cid = rig.scratch.join("cid");
    let said = rig.must(&[
        "run",
        "--rm",
        "--env-file",
        env.to_str().unwrap(),
        "--cidfile",
        cid.to_str().unwrap(),
        "--entrypoint",
        "/bin/echo",
        "bb",
        "only",
    ]);
    assert_eq!(said, "only\n");
    assert_eq!(fs::read_to_string(&cid).unwrap().len(), 64);
    rig.nothing_is_left();
}

#[test]
fn a_stopped_container_keeps_its_layer_and_starts_again_with_it() {
    require!(able());
    let rig = Rig::new("keeps");
    let id = rig.must(&[
        "create",
        "--name",
        "c1",
        "bb",
        "sh",
        "-c",
        "echo x >> /data/f; cat /data/f",
    ]);
    assert_eq!(rig.status("c1"), "created");
    assert_eq!(rig.must(&["start", "-a", "c1"]), "x\n");
    assert_eq!(rig.must(&["start", "-a", id.trim()]), "x\nx\n");
    assert_eq!(rig.status("c1"), "exited");
    assert_eq!(rig.must(&["diff", "c1"]), "C /data\nA /data/f\nC /etc\n");
    assert_eq!(rig.must(&["logs", "c1"]), "x\nx\nx\n");
    assert_eq!(rig.must(&["logs", "-n", "1", "c1"]), "x\n");
    // Another one of the image sees nothing of it.
    assert_eq!(rig.must(&["run", "--rm", "bb", "ls", "/data"]), "");
    assert!(
        rig.fails(1, &["image", "rm", "bb"])
            .contains("container c1")
    );
    rig.must(&["rename", "c1", "c2"]);
    assert!(
        rig.fails(125, &["run", "--name", "c2", "bb", "true"])
            .contains("already in use")
    );
    assert_eq!(rig.must(&["rm", "c2"]), "c2\n");
    assert!(
        rig.fails(1, &["logs", "c2"])
            .contains("no such container: c2")
    );
    rig.nothing_is_left();
    rig.must(&["image", "rm", "bb"]);
}

#[test]
fn containers_are_stopped_killed_waited_for_and_listed() {
    require!(able());
    let rig = Rig::new("stop");
    let trap = "trap 'echo bye; exit 7' TERM; echo up; while true; do sleep 0.05; done";
    rig.must(&[
        "run", "-d", "--name", "polite", "--label", "a=b", "bb", "sh", "-c", trap,
    ]);
    rig.must(&[
        "run",
        "-d",
        "--name",
        "deaf",
        "bb",
        "sh",
        "-c",
        "trap '' TERM; while true; do sleep 0.05; done",
    ]);
    rig.until("polite is up", || rig.must(&["logs", "polite"]) == "up\n");
    let names = |words: &[&str]| -> Vec<String> {
        let listed = rig.must(&[&["ps", "--json"], words].concat());
        let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
        let mut names: Vec<String> = listed
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["name"].as_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(&[]), ["deaf", "polite"]);
    assert_eq!(names(&["--filter", "label=a=b"]), ["polite"]);
    assert_eq!(names(&["--filter", "name=dea"]), ["deaf"]);
    assert!(rig.fails(1, &["rm", "polite"]).contains("is running"));
    let mut waiting = rig.command(&["wait", "polite"]);
    let waiting = waiting.stdout(Stdio::piped()).spawn().unwrap();
    rig.must(&["stop", "polite"]);
    assert_eq!(waiting.wait_with_output().unwrap().stdout, b"7\n");
    assert_eq!(rig.must(&["logs", "-f", "polite"]), "up\nbye\n");
    let begin = Instant::now();
    rig.must(&["stop", "-t", "1", "deaf"]);
    assert!(begin.elapsed() >= Duration::from_secs(1));
    assert_eq!(rig.must(&["wait", "deaf"]), "137\n");
    assert_eq!(names(&[]), Vec::<String>::new());
    assert_eq!(names(&["-a", "--filter", "exited=7"]), ["polite"]);
    rig.must(&["restart", "deaf"]);
    rig.must(&["kill", "-s", "KILL", "deaf"]);
    assert_eq!(rig.status("deaf"), "exited");
    assert!(rig.fails(1, &["kill", "deaf"]).contains("not running"));
    rig.must(&["container", "prune"]);
    rig.nothing_is_left();
}

#[test]
fn programs_run_beside_and_images_are_made_of_running_containers() {
    require!(able());
    let rig = Rig::new("beside");
    rig.must(&["run", "-d", "--name", "cc", "bb", "sleep", "1000"]);
    rig.fails(3, &["exec", "cc", "sh", "-c", "echo 1 > /data/one; exit 3"]);
    assert_eq!(
        rig.must(&[
            "exec",
            "-u",
            "web",
            "-e",
            "X=y",
            "-w",
            "/data",
            "cc",
            "sh",
            "-c",
            "id -u; echo $X; ls"
        ]),
        "33\ny\none\n"
    );
    assert!(rig.fails(127, &["exec", "cc", "nope"]).contains("nope"));
    for wrong in [
        &["-u", "nobody", "cc", "true"][..],
        &["-w", "relative", "cc", "true"],
        &["-e", "=x", "cc", "true"],
        &["cc", "/data"],
    ] {
        rig.fails(126, &[&["exec"], wrong].concat());
    }
    // What is set again is not there twice, and what nobody has set is not there.
    let script = "env | grep -c ^FROM_IMAGE=; echo $FROM_IMAGE ${NOT_SET_ANYWHERE-unset}";
    let words = "exec -e FROM_IMAGE=again -e NOT_SET_ANYWHERE cc sh -c";
    let words: Vec<&str> = words.split(' ').chain([script]).collect();
    assert_eq!(rig.must(&words), "1\nagain unset\n");
    let id = rig.inspect("cc")["Id"].as_str().unwrap()[..12].to_owned();
    let named = rig.must(&["exec", "cc", "sh", "-c", "echo $HOSTNAME"]);
    assert_eq!(named.trim_end(), id);
    let (code, output) = rig.with_input(&["exec", "-i", "cc", "cat"], b"through");
    assert_eq!((code, output), (Some(0), b"through".to_vec()));
    let id = rig.must(&[
        "commit",
        "-p",
        "-a",
        "me",
        "-m",
        "why",
        "-c",
        "CMD [\"cat\",\"/data/one\"]",
        "cc",
        "made:1",
    ]);
    assert!(id.starts_with("sha256:"), "{id}");
    // It goes on.
    rig.must(&["exec", "cc", "true"]);
    assert_eq!(rig.must(&["run", "--rm", "made:1"]), "1\n");
    let tar = rig.scratch.join("c.tar");
    for stopped in [false, true] {
        if stopped {
            rig.must(&["kill", "cc"]);
        }
        rig.must(&["export", "-o", tar.to_str().unwrap(), "cc"]);
        let found = tar::Archive::new(fs::File::open(&tar).unwrap())
            .entries()
            .unwrap()
            .any(|e| e.unwrap().path().unwrap().ends_with("data/one"));
        assert!(found, "stopped: {stopped}");
    }
    assert!(rig.must(&["diff", "cc"]).contains("A /data/one"));
    rig.must(&["rm", "cc"]);
    rig.nothing_is_left();
}

#[test]
fn two_containers_see_nothing_of_each_other() {
    require!(able());
    let rig = Rig::new("apart");
    for name in ["a1", "a2"] {
        rig.must(&["run", "-d", "--name", name, "bb", "sleep", "1000"]);
    }
    rig.must(&[
        "exec",
        "a1",
        "sh",
        "-c",
        "echo 1 > /data/f; rm /bin/dd; echo changed > /etc/passwd",
    ]);
    assert_eq!(
        rig.must(&[
            "exec",
            "a2",
            "sh",
            "-c",
            "ls /data; ls /bin/dd; cat /etc/passwd | dd count=1 bs=4 2>/dev/null"
        ]),
        "/bin/dd\nroot"
    );
    rig.must(&["rm", "-f", "a1", "a2"]);
    rig.nothing_is_left();
}

#[test]
fn a_runtime_of_another_name_finds_its_configuration_written() {
    require!(able());
    let rig = Rig::new("wrapped");
    let wrapped = rig.scratch.join("wrapped");
    let runtime =
        crate::common::program::find("runc").or_else(|_| crate::common::program::find("crun"));
    // It reads the configuration itself before the runtime does, as those do that add devices.
    let text = format!(
        "#!/bin/sh\ntest -f config.json && grep -q ociVersion config.json || exit 9\nexec {} \"$@\"\n",
        runtime.unwrap().display()
    );
    fs::write(&wrapped, text).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&wrapped, mode).unwrap();
    let runtime = wrapped.to_str().unwrap();
    let words = [
        "run",
        "--rm",
        "--runtime",
        runtime,
        "bb",
        "sh",
        "-c",
        "echo out; exit 3",
    ];
    assert_eq!(rig.fails(3, &words), "out\n");
    rig.nothing_is_left();
}

#[test]
fn what_holds_an_environment_or_output_is_the_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    require!(able());
    let rig = Rig::new("secrets");
    let script = "echo $PASSWORD; sleep 1000";
    rig.must(&[
        "run",
        "-d",
        "--name",
        "cc",
        "-e",
        "PASSWORD=xyzzy",
        "bb",
        "sh",
        "-c",
        script,
    ]);
    rig.until("the log has it", || {
        rig.must(&["logs", "cc"]).contains("xyzzy")
    });
    let dir = rig.dir("cc");
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(dir.parent().unwrap()), 0o700);
    let mut found = 0;
    for entry in fs::read_dir(&dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            let path = entry.path();
            if String::from_utf8_lossy(&fs::read(&path).unwrap()).contains("xyzzy") {
                assert_eq!(mode(&path), 0o600, "{}", path.display());
                found += 1;
            }
        }
    }
    assert!(found > 1);
    rig.must(&["rm", "-f", "cc"]);
    rig.nothing_is_left();
}

#[test]
fn the_monitors_log_is_beside_that_of_the_program() {
    require!(able());
    let rig = Rig::new("monitorlog");
    let words = ["run", "--name", "aa", "bb", "true"];
    let finished = crate::common::program::run(
        rig.command(&words).env("RUST_LOG", "acetate=debug"),
        crate::rig::LIMIT,
    );
    assert!(finished.success(), "{}", finished.text);
    let inspected = rig.inspect("aa");
    let log = fs::read_to_string(inspected["MonitorLogPath"].as_str().unwrap()).unwrap();
    assert!(log.contains("acetate"), "{log}");
    rig.must(&["rm", "aa"]);
    rig.nothing_is_left();
}

#[test]
fn a_log_with_a_limit_keeps_the_last_lines() {
    require!(able());
    let rig = Rig::new("limit");
    let script = "n=0; while [ $n -lt 3000 ]; do echo line $n; n=$((n+1)); done";
    let limits = ["--log-opt", "max-size=8k", "--log-opt", "max-file=2"];
    let words = [
        &["run", "--name", "ll"][..],
        &limits,
        &["bb", "sh", "-c", script],
    ]
    .concat();
    let shown = rig.must(&words);
    assert_eq!(shown.lines().count(), 3000);
    let kept = rig.must(&["logs", "ll"]);
    assert!(
        kept.ends_with("line 2999\n") && shown.ends_with(&kept),
        "{kept}"
    );
    let sizes: Vec<u64> = ["log", "log.1"]
        .iter()
        .map(|name| fs::metadata(rig.dir("ll").join(name)).unwrap().len())
        .collect();
    assert!(sizes.iter().all(|size| *size <= 8 << 10), "{sizes:?}");
    assert!(!rig.dir("ll").join("log.2").exists());
    rig.must(&["rm", "ll"]);
    rig.nothing_is_left();
}
