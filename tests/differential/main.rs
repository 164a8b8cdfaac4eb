//! The same random operations on acetate, on the kernel's overlayfs over the same layers, and on a plain
//! directory that holds the merged tree: after each the outcomes are equal, at the end the trees.
//!
//! `ACETATE_SEQUENCES` says how many sequences are run.

#![allow(unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod compare;
mod exec;
mod generate;
mod layers;
mod op;
mod outcome;
mod regressions;
mod run;
mod sys;
mod world;

use common::skip;
use world::Against;

#[test]
fn random_sequences() {
    require!(skip::privileged());
    run::random("random_sequences", Against::Acetate, &[""], 200);
}

/// The comparison itself: the kernel's overlayfs in acetate's place. Its differences from a plain directory
/// are looked at here when the rules of `compare` are worked on.
#[test]
#[ignore = "shows the kernel's own differences"]
fn the_kernel_itself() {
    require!(skip::privileged());
    run::random("the_kernel_itself", Against::Kernel, &[""], 200);
}
