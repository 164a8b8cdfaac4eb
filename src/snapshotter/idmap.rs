//! The labels that say how a user namespace maps owners: `CONTAINER:HOST:COUNT`, joined by commas.

use super::error::SnapshotError;
use super::record::Labels;

/// Of users.
pub(super) const UID_LABEL: &str = "containerd.io/snapshot/uidmapping";
/// Of groups.
pub(super) const GID_LABEL: &str = "containerd.io/snapshot/gidmapping";

/// One range of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) container: u32,
    pub(super) host: u32,
    pub(super) count: u32,
}

/// How users and groups are mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct IdMapping {
    uids: Vec<Range>,
    gids: Vec<Range>,
}

impl IdMapping {
    /// What the labels say; `None` where they say nothing.
    pub(super) fn of(labels: &Labels) -> Result<Option<IdMapping>, SnapshotError> {
        match (labels.get(UID_LABEL), labels.get(GID_LABEL)) {
            (None, None) => Ok(None),
            (Some(uids), Some(gids)) => Ok(Some(IdMapping {
                uids: parse(UID_LABEL, uids)?,
                gids: parse(GID_LABEL, gids)?,
            })),
            _ => Err(SnapshotError::InvalidArgument(format!(
                "of the labels {UID_LABEL} and {GID_LABEL} only one is there"
            ))),
        }
    }

    /// Who the namespace's root is outside.
    pub(super) fn root(&self) -> Result<(u32, u32), SnapshotError> {
        let root = |ranges: &[Range]| {
            let range = ranges.iter().find(|range| range.container == 0);
            range.map(|range| range.host)
        };
        match (root(&self.uids), root(&self.gids)) {
            (Some(uid), Some(gid)) => Ok((uid, gid)),
            _ => Err(SnapshotError::InvalidArgument(
                "the labels of the id maps do not map the root user and group".into(),
            )),
        }
    }

    /// As options of the driver: on disk lie the container's own ids.
    pub(super) fn options(&self) -> [String; 2] {
        let text = |ranges: &[Range]| {
            let all: Vec<String> = ranges
                .iter()
                .map(|range| format!("{}:{}:{}", range.container, range.host, range.count))
                .collect();
            all.join(":")
        };
        [
            format!("uidmapping={}", text(&self.uids)),
            format!("gidmapping={}", text(&self.gids)),
        ]
    }
}

fn parse(label: &str, text: &str) -> Result<Vec<Range>, SnapshotError> {
    let range = |text: &str| {
        let mut numbers = text.split(':').map(|number| number.parse::<u32>().ok());
        let mut next = || numbers.next().flatten();
        let range = Range {
            container: next()?,
            host: next()?,
            count: next().filter(|count| *count > 0)?,
        };
        range.container.checked_add(range.count)?;
        range.host.checked_add(range.count)?;
        numbers.next().is_none().then_some(range)
    };
    text.split(',').map(range).collect::<Option<_>>().ok_or_else(|| {
        SnapshotError::InvalidArgument(format!(
            "label {label}={text:?}: CONTAINER:HOST:COUNT, or several of them joined by commas, is expected"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(uid: &str, gid: &str) -> Labels {
        [(UID_LABEL, uid), (GID_LABEL, gid)]
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    #[test]
    fn labels_become_options() {
        assert_eq!(IdMapping::of(&labels("", "")).unwrap(), None);
        let map = IdMapping::of(&labels("0:100000:65536", "0:5:1,1:200000:9"))
            .unwrap()
            .unwrap();
        assert_eq!(map.root().unwrap(), (100_000, 5));
        assert_eq!(
            map.options(),
            ["uidmapping=0:100000:65536", "gidmapping=0:5:1:1:200000:9"]
        );
        for (uid, gid) in [
            ("0:1:1", ""),
            ("", "0:1:1"),
            ("0:1", "0:1:1"),
            ("0:1:0", "0:1:1"),
            ("0:1:1:1", "0:1:1"),
            ("0:4294967295:2", "0:1:1"),
            ("-1:0:1", "0:1:1"),
        ] {
            assert!(IdMapping::of(&labels(uid, gid)).is_err(), "{uid} {gid}");
        }
        let without_root = IdMapping::of(&labels("1:1:1", "1:1:1")).unwrap().unwrap();
        assert!(without_root.root().is_err());
    }
}
