//! What once failed, shrunk, each by the name of what was wrong.

use super::op::Features::All;
use super::op::Layer::Tree;
use super::op::Node::{File, Link};
use super::op::Op::*;
use super::op::Who::{Alice, Root};
use super::op::{Attrs, Case, Setup, Step};
use super::run::{replay, replay_committed};

#[test]
fn a_write_by_a_stranger_to_the_group_takes_sgid_without_group_execute_away() {
    replay(&Case {
        setup: Setup {
            root_mode: 0o755,
            features: All,
            options: "",
            each: false,
        },
        layers: vec![Tree(vec![])],
        steps: vec![
            Step {
                who: Root,
                op: Open {
                    slot: 2,
                    path: "f",
                    flags: 0o101,
                    mode: 0o2644,
                },
            },
            Step {
                who: Alice,
                op: Write {
                    slot: 2,
                    len: 1,
                    seed: 1,
                },
            },
        ],
    });
}

#[test]
fn a_chown_that_changes_nothing_takes_suid_of_a_fifo_away() {
    replay(&Case {
        setup: Setup {
            root_mode: 0o777,
            features: All,
            options: "",
            each: false,
        },
        layers: vec![Tree(vec![])],
        steps: vec![
            Step {
                who: Alice,
                op: Mknod {
                    path: "f",
                    kind: 4096,
                    mode: 0o4755,
                    major: 0,
                    minor: 0,
                },
            },
            Step {
                who: Alice,
                op: Chown {
                    path: "f",
                    uid: None,
                    gid: None,
                    follow: false,
                },
            },
        ],
    });
}

#[test]
fn a_stranger_cannot_take_suid_away_by_a_chown_that_changes_nothing() {
    replay(&Case {
        setup: Setup {
            root_mode: 0o777,
            features: All,
            options: "",
            each: false,
        },
        layers: vec![Tree(vec![])],
        steps: vec![
            Step {
                who: Root,
                op: Open {
                    slot: 0,
                    path: "f",
                    flags: 0o101,
                    mode: 0o4777,
                },
            },
            Step {
                who: Root,
                op: Close { slot: 0 },
            },
            Step {
                who: Alice,
                op: Chown {
                    path: "f",
                    uid: None,
                    gid: None,
                    follow: false,
                },
            },
            Step {
                who: Alice,
                op: Open {
                    slot: 0,
                    path: "f",
                    flags: 1,
                    mode: 0,
                },
            },
            Step {
                who: Alice,
                op: Write {
                    slot: 0,
                    len: 1,
                    seed: 1,
                },
            },
        ],
    });
}

#[test]
fn a_refused_chown_leaves_capabilities_in_place() {
    let attrs = Attrs {
        mode: 0o755,
        uid: 0,
        gid: 0,
        xattrs: 4,
    };
    replay(&Case {
        setup: Setup {
            root_mode: 0o755,
            features: All,
            options: "",
            each: false,
        },
        layers: vec![Tree(vec![
            (
                "f",
                File {
                    size: 1,
                    sparse: false,
                    seed: 1,
                    attrs,
                },
            ),
            (
                "g",
                File {
                    size: 1,
                    sparse: false,
                    seed: 1,
                    attrs: Attrs {
                        mode: 0o4755,
                        ..attrs
                    },
                },
            ),
        ])],
        steps: vec![
            Step {
                who: Alice,
                op: Chown {
                    path: "g",
                    uid: None,
                    gid: None,
                    follow: false,
                },
            },
            Step {
                who: Alice,
                op: Chown {
                    path: "f",
                    uid: None,
                    gid: None,
                    follow: false,
                },
            },
        ],
    });
}

#[test]
fn the_last_name_of_a_changed_hard_link_is_committed_with_its_changes() {
    let attrs = Attrs {
        mode: 0o755,
        uid: 0,
        gid: 0,
        xattrs: 0,
    };
    let file = File {
        size: 0,
        sparse: false,
        seed: 1,
        attrs,
    };
    replay_committed(&Case {
        setup: Setup {
            root_mode: 0o755,
            features: All,
            options: "",
            each: true,
        },
        layers: vec![Tree(vec![("b/f", file), ("a/g", Link { to: "b/f" })])],
        steps: vec![
            Step {
                who: Root,
                op: Open {
                    slot: 0,
                    path: "f",
                    flags: 2,
                    mode: 420,
                },
            },
            Step {
                who: Root,
                op: Truncate {
                    path: "b/f",
                    size: 0,
                },
            },
            Step {
                who: Root,
                op: Unlink { path: "a/g" },
            },
        ],
    });
}
