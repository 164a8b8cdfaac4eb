//! The same random operations on acetate, on the kernel's overlayfs over the same layers, and on a plain
//! directory that holds the merged tree: after each the outcomes are equal, at the end the trees.
//!
//! `ACETATE_SEQUENCES` says how many sequences are run.

#![allow(unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod committed;
#[path = "../common/mod.rs"]
mod common;
mod compare;
mod exec;
mod generate;
mod ground;
mod layers;
mod op;
mod outcome;
mod parallel;
mod regressions;
mod run;
mod sys;
mod view;
mod world;

use common::skip;
use generate::Variant;
use world::Against;

/// Random sequences with these options of acetate.
fn random(name: &str, options: &'static str, user: bool, sequences: u32) {
    require!(skip::privileged());
    run::random(name, Against::Acetate, Variant { options, user }, sequences);
}

#[test]
fn random_sequences() {
    random("random_sequences", "passthrough_lower=never", false, 200);
}

#[test]
fn random_sequences_in_the_user_form() {
    let name = "random_sequences_in_the_user_form";
    random(name, "passthrough_lower=never", true, 100);
}

#[test]
fn random_sequences_with_programs_passed_through() {
    let name = "random_sequences_with_programs_passed_through";
    random(name, "", false, 100);
}

#[test]
fn random_sequences_with_every_lower_file_passed_through() {
    let name = "random_sequences_with_every_lower_file_passed_through";
    random(name, "passthrough_lower=always", false, 50);
}

#[test]
fn random_sequences_without_passthrough() {
    let name = "random_sequences_without_passthrough";
    random(name, "passthrough=off", false, 100);
}

/// The lower layers answer from indexes.
#[test]
fn random_sequences_with_indexed_layers() {
    let name = "random_sequences_with_indexed_layers";
    random(name, "layer_index=build", false, 60);
}

#[test]
fn random_sequences_with_indexed_layers_in_the_user_form() {
    let name = "random_sequences_with_indexed_layers_in_the_user_form";
    random(name, "layer_index=build,passthrough=off", true, 30);
}

/// Every copy-up copies the whole file, as with the kernel's default options.
#[test]
fn random_sequences_without_metacopy() {
    let name = "random_sequences_without_metacopy";
    random(name, "metacopy=off,partial=off", false, 60);
}

/// Files of more than a block are copied up by blocks, and completed by the unmounts alone.
#[test]
fn random_sequences_with_partial_copy_up() {
    let name = "random_sequences_with_partial_copy_up";
    random(name, "partial=4096,complete=off", false, 150);
}

/// As above, with the completion racing against the operations.
#[test]
fn random_sequences_with_partial_copy_up_completed_meanwhile() {
    let name = "random_sequences_with_partial_copy_up_completed_meanwhile";
    random(
        name,
        "partial=4096,complete=0,passthrough_lower=never",
        false,
        100,
    );
}

#[test]
fn random_sequences_with_partial_copy_up_by_the_cache() {
    let name = "random_sequences_with_partial_copy_up_by_the_cache";
    random(name, "partial=4096,complete=off,passthrough=off", false, 60);
}

/// Another process than the one that was started serves, and writes down what it does.
#[test]
fn random_sequences_under_a_supervisor() {
    let name = "random_sequences_under_a_supervisor";
    random(name, "supervise=on", false, 10);
}

#[test]
fn random_sequences_under_a_supervisor_by_the_cache() {
    let name = "random_sequences_under_a_supervisor_by_the_cache";
    let options = "supervise=on,partial=4096,complete=0.05,passthrough=off";
    random(name, options, false, 10);
}

/// At the end the upper is committed on an image of the lower layers, and the image compared with the mount.
fn committed(name: &str, options: &'static str, user: bool, sequences: u32) {
    require!(skip::privileged());
    let variant = Variant { options, user };
    run::random(name, Against::Image, variant, sequences);
}

#[test]
fn random_sequences_committed() {
    committed("random_sequences_committed", "", false, 16);
}

#[test]
fn random_sequences_committed_with_data_left_below() {
    let name = "random_sequences_committed_with_data_left_below";
    committed(name, "metacopy=on,partial=4096,complete=off", false, 16);
}

#[test]
fn random_sequences_committed_in_the_user_form() {
    let name = "random_sequences_committed_in_the_user_form";
    committed(name, "", true, 10);
}

#[test]
fn processes_on_their_own_directories() {
    require!(skip::privileged());
    run::seeds("processes_on_their_own_directories", parallel::disjoint);
}

#[test]
fn processes_on_the_same_directories() {
    require!(skip::privileged());
    run::seeds("processes_on_the_same_directories", parallel::shared);
}

/// What the two tests above run in processes of their own.
#[test]
#[ignore = "the body of a worker process"]
fn worker_process() {
    parallel::work();
}

/// The comparison itself: the kernel's overlayfs in acetate's place. Its differences from a plain directory
/// are looked at here when the rules of `compare` are worked on.
#[test]
#[ignore = "shows the kernel's own differences"]
fn the_kernel_itself() {
    require!(skip::privileged());
    run::random(
        "the_kernel_itself",
        Against::Kernel,
        Variant::default(),
        200,
    );
}
