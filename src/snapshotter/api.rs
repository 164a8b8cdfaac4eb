//! What each call of the wire asks the store.

use std::collections::HashMap;

use super::error::SnapshotError;
use super::filter::Filters;
use super::proto::{
    CleanupRequest, CommitRequest, CreateRequest, Empty, Info, InfoResponse, KeyRequest, Kind,
    ListRequest, ListResponse, MountsResponse, UpdateRequest, UsageResponse,
};
use super::record::{Labels, Record, SnapshotKind};
use super::store::{Change, NewSnapshot, Snapshots};

/// How many snapshots one part of a list holds: a message may not grow beyond 4 MiB.
const LIST_PART: usize = 100;

/// The longest name: as long as containerd's own database takes.
const NAME_LIMIT: usize = 32_768;

/// The longest label, key and value together, as containerd's API says.
const LABEL_LIMIT: usize = 4096;

type Answer<A> = Result<A, SnapshotError>;

fn name(what: &str, name: &str) -> Answer<()> {
    let wrong = if name.is_empty() {
        "is missing"
    } else if name.len() > NAME_LIMIT {
        "is too long"
    } else if name.contains('\0') {
        "holds a NUL"
    } else {
        return Ok(());
    };
    Err(SnapshotError::InvalidArgument(format!(
        "the {what} {wrong}"
    )))
}

/// Checks labels. An empty value is none: containerd takes a label away by it.
fn labels(given: HashMap<String, String>) -> Answer<Labels> {
    for (key, value) in &given {
        if key.len() + value.len() > LABEL_LIMIT {
            let short: String = key.chars().take(60).collect();
            return Err(SnapshotError::InvalidArgument(format!(
                "label {short:?} and its value are longer than {LABEL_LIMIT} bytes"
            )));
        }
    }
    Ok(given
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .collect())
}

fn create(store: &Snapshots, kind: SnapshotKind, request: CreateRequest) -> Answer<MountsResponse> {
    name("key", &request.key)?;
    let mounts = store.create(NewSnapshot {
        kind,
        key: request.key,
        parent: Some(request.parent).filter(|parent| !parent.is_empty()),
        labels: labels(request.labels)?,
    })?;
    Ok(MountsResponse { mounts })
}

pub(super) fn prepare(store: &Snapshots, request: CreateRequest) -> Answer<MountsResponse> {
    create(store, SnapshotKind::Active, request)
}

pub(super) fn view(store: &Snapshots, request: CreateRequest) -> Answer<MountsResponse> {
    create(store, SnapshotKind::View, request)
}

pub(super) fn mounts(store: &Snapshots, request: KeyRequest) -> Answer<MountsResponse> {
    let mounts = store.mounts(&request.key)?;
    Ok(MountsResponse { mounts })
}

pub(super) fn commit(store: &Snapshots, request: CommitRequest) -> Answer<Empty> {
    name("name", &request.name)?;
    let parent = Some(request.parent).filter(|parent| !parent.is_empty());
    let labels = labels(request.labels)?;
    store.commit(&request.key, &request.name, parent, labels)?;
    Ok(Empty {})
}

pub(super) fn remove(store: &Snapshots, request: KeyRequest) -> Answer<Empty> {
    store.remove(&request.key)?;
    Ok(Empty {})
}

pub(super) fn stat(store: &Snapshots, request: KeyRequest) -> Answer<InfoResponse> {
    let info = Some(info(&store.stat(&request.key)?));
    Ok(InfoResponse { info })
}

pub(super) fn update(store: &Snapshots, request: UpdateRequest) -> Answer<InfoResponse> {
    let Some(wanted) = request.info else {
        return Err(SnapshotError::InvalidArgument("the info is missing".into()));
    };
    let given = labels(wanted.labels)?;
    let paths = request.update_mask.unwrap_or_default().paths;
    let mut changes = Vec::new();
    if paths.is_empty() {
        changes.push(Change::AllLabels(given));
    } else {
        for path in paths {
            if let Some(key) = path.strip_prefix("labels.") {
                changes.push(Change::Label(key.to_owned(), given.get(key).cloned()));
            } else if path == "labels" {
                changes.push(Change::AllLabels(given.clone()));
            } else {
                return Err(SnapshotError::InvalidArgument(format!(
                    "cannot update field {path:?} of snapshot {:?}: only labels change",
                    wanted.name
                )));
            }
        }
    }
    let info = Some(info(&store.update(&wanted.name, changes)?));
    Ok(InfoResponse { info })
}

pub(super) fn list(store: &Snapshots, request: &ListRequest) -> Answer<Vec<ListResponse>> {
    let filters = Filters::parse(&request.filters)?;
    let found: Vec<Info> = store.list(&filters).iter().map(info).collect();
    Ok(found
        .chunks(LIST_PART)
        .map(|part| ListResponse {
            info: part.to_vec(),
        })
        .collect())
}

pub(super) fn usage(store: &Snapshots, request: KeyRequest) -> Answer<UsageResponse> {
    let usage = store.usage(&request.key)?;
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    Ok(UsageResponse {
        size: number(usage.size),
        inodes: number(usage.inodes),
    })
}

pub(super) fn cleanup(store: &Snapshots, _: CleanupRequest) -> Answer<Empty> {
    store.sweep()?;
    Ok(Empty {})
}

fn info(record: &Record) -> Info {
    let kind = match record.kind {
        SnapshotKind::View => Kind::View,
        SnapshotKind::Active => Kind::Active,
        SnapshotKind::Committed => Kind::Committed,
    };
    Info {
        name: record.name.clone(),
        parent: record.parent.clone().unwrap_or_default(),
        kind: kind.into(),
        created_at: Some(record.created.into()),
        updated_at: Some(record.updated.into()),
        labels: record
            .labels
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_labels_have_limits() {
        assert!(name("key", "").is_err());
        assert!(name("key", "a\0b").is_err());
        assert!(name("key", &"x".repeat(NAME_LIMIT + 1)).is_err());
        assert!(name("key", "../../etc\n/*").is_ok());
        let one = |value: String| HashMap::from([("k".to_owned(), value)]);
        assert_eq!(labels(one("x".repeat(4095))).unwrap().len(), 1);
        assert!(labels(one("x".repeat(4096))).is_err());
        assert!(labels(one(String::new())).unwrap().is_empty());
    }
}
