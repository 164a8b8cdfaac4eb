//! What options mean, and which are refused.

use super::*;

fn parse(text: &str) -> Result<MountOptions, OptionError> {
    MountOptions::parse(&[text])
}

fn paths(names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(PathBuf::from).collect()
}

#[test]
fn directories() {
    for (text, expected) in [
        ("lowerdir=a", vec!["a"]),
        ("lowerdir=/a:b:../c", vec!["/a", "b", "../c"]),
        (r"lowerdir=a\:b:c\,d:e\\f", vec!["a:b", "c,d", r"e\f"]),
        ("lowerdir=a:b,lowerdir=a:b", vec!["a", "b"]),
        ("lowerdir+=a:b,lowerdir+=c", vec!["a:b", "c"]),
        ("ro,,lowerdir=a,", vec!["a"]),
    ] {
        assert_eq!(parse(text).unwrap().lowers, paths(&expected), "{text}");
    }
    let options = parse(r"lowerdir=l,upperdir=u\,1,workdir=w\:2").unwrap();
    assert_eq!(options.upper, Some("u,1".into()));
    assert_eq!(options.work, Some("w:2".into()));
}

#[test]
fn data_only_layers() {
    for text in [
        "lowerdir=a:b::c::d",
        "lowerdir+=a,lowerdir+=b,datadir+=c,datadir+=d",
    ] {
        let options = parse(text).unwrap();
        assert_eq!(options.lowers, paths(&["a", "b"]), "{text}");
        assert_eq!(options.data_layers, paths(&["c", "d"]), "{text}");
    }
    for (text, word) in [
        ("lowerdir=::c", "a path"),
        ("lowerdir=a::", "a path"),
        ("lowerdir=a:", "a path"),
        ("lowerdir=a::c:d", "two colons"),
        ("lowerdir=a,datadir+=b,lowerdir+=c", "datadir+"),
        ("lowerdir=a::b,metacopy=off", "contradict"),
        ("lowerdir=a::b,redirect_dir=nofollow", "contradict"),
        ("index=on,index=off", "\"index\""),
        ("lowerdir=a,lowerdir=b", "\"lowerdir\""),
    ] {
        let message = parse(text).unwrap_err().to_string();
        assert!(message.contains(word), "{text}: {message}");
    }
}

#[test]
fn several_values_add_up() {
    let options = MountOptions::parse(&["lowerdir=a,ro", "rw,volatile"]).unwrap();
    assert_eq!(options.lowers, paths(&["a"]));
    assert!(options.volatile && !options.read_only());
}

#[test]
fn every_ordinary_option_is_known() {
    for text in [
        "rw,suid,dev,exec,auto,nouser,async,relatime,lazytime,defaults,_netdev,nofail",
        "ro,nosuid,nodev,noexec,noatime,nodiratime,strictatime,sync,dirsync,x-systemd.automount",
        "redirect_dir=on,metacopy=on,index=on,xino=auto,uuid=null,nfs_export=off,verity=off",
        "redirect_dir=nofollow,metacopy=off,index=off,xino=off,userxattr,volatile",
        "threaded=1,clone_fd,max_write=131072,max_idle_threads=4,fast_ino_check,timeout=1.5",
        "fsync=0,writeback=0,noxattrs=0,xattr_permissions=2,noacl,static_nlink,squash_to_root",
        "allow_other,default_permissions,fsname=a b,subtype=x,debug,user=me,x-a=b,comment=c",
        "passthrough=on,passthrough_lower=never",
        "busy_poll=0",
        "busy_poll=1000",
        "partial=off,complete=off",
        "partial=4096,complete=0",
        "partial=4K,complete=2.5",
        "partial=1M,partial=1M",
        "uidmapping=0:1000:1,gidmapping=0:1000:1:1:100000:65536",
    ] {
        parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    }
}

#[test]
fn values() {
    let options = parse("redirect_dir=off,metacopy=off,index=on,timeout=0.5,fsync=0").unwrap();
    assert_eq!(options.redirect_dir, Some(RedirectDir::Follow));
    assert_eq!(options.metacopy, Some(false));
    assert_eq!(options.index, Some(true));
    assert_eq!(options.timeout, Some(Duration::from_millis(500)));
    assert_eq!(options.fsync, Some(false));
    let options = parse("partial=2M,complete=5").unwrap();
    assert_eq!(options.partial, Some(Partial::Above(2 << 20)));
    let five = Duration::from_secs(5);
    assert_eq!(options.complete, Some(Complete::After(five)));
    let options = parse("squash_to_uid=5,squash_to_gid=6,xattr_permissions=1").unwrap();
    assert_eq!(options.ids.squash_uid, Some(5));
    assert_eq!(options.ids.squash_gid, Some(6));
    assert_eq!(options.override_stat, OverrideStat::Privileged);
}

#[test]
fn flags_are_the_last_ones() {
    let options = parse("ro,nosuid,rw,lazytime").unwrap();
    assert_eq!(options.flags, MountFlags::NOSUID | MountFlags::LAZYTIME);
    assert!(parse("ro").unwrap().read_only());
}

#[test]
fn a_quoted_context_keeps_its_commas() {
    let text = "ro,context=\"system_u:object_r:container_file_t:s0:c1,c2\",volatile";
    let options = parse(text).unwrap();
    assert_eq!(
        options.security,
        ["context=\"system_u:object_r:container_file_t:s0:c1,c2\""]
    );
    assert!(options.volatile);
}

#[test]
fn wrong_options_are_named() {
    for (text, part) in [
        ("frobnicate", "unknown mount option \"frobnicate\""),
        ("frob=1", "unknown mount option \"frob\""),
        ("lowerdir=", "a path is expected"),
        ("lowerdir=a:", "a path is expected"),
        ("plugins=a", "\"plugins\" is not supported"),
        ("verity=require", "\"verity\" is not supported"),
        ("nfs_export=on", "\"nfs_export\" is not supported"),
        ("redirect_dir=maybe", "on, off, follow or nofollow"),
        ("metacopy=1", "on or off"),
        ("partial=0", "at least 4K"),
        ("partial=4095", "at least 4K"),
        ("partial=-1", "at least 4K"),
        ("partial=1.5M", "at least 4K"),
        ("partial=on", "at least 4K"),
        ("partial=1X", "at least 4K"),
        ("partial=9999999T", "at least 4K"),
        ("partial=99999999999999999999", "at least 4K"),
        ("partial=", "at least 4K"),
        ("partial", "unknown mount option"),
        ("complete=soon", "off or a number of seconds"),
        ("partial=off,complete=5", "contradict"),
        ("timeout=soon", "a number of seconds"),
        ("timeout=-1", "a number of seconds"),
        ("uidmapping=1:2", "DISK:SHOWN:COUNT"),
        ("squash_to_uid=root", "a user id"),
        ("busy_poll=on", "microseconds"),
        ("busy_poll=", "microseconds"),
        ("busy_poll=+1", "microseconds"),
        ("busy_poll=1001", "microseconds"),
        ("busy_poll=99999999999999999999", "microseconds"),
        ("xattr_permissions=3", "0, 1 or 2"),
        ("upperdir=u,lowerdir=l", "needs \"workdir\""),
        ("volatile,fsync=1", "contradict"),
        ("allow_other,allow_root", "contradict"),
        ("metacopy=on,redirect_dir=nofollow", "contradict"),
        ("metacopy=on,redirect_dir=off", "contradict"),
        ("squash_to_root,squash_to_uid=5", "contradict"),
        ("squash_to_gid=5,squash_to_root", "contradict"),
        ("workdir=w,lowerdir=l", "needs \"upperdir\""),
        ("passthrough=on,writeback=1", "contradict"),
        ("squash_to_root,uidmapping=0:0:1", "contradict"),
    ] {
        let error = parse(text).expect_err(text).to_string();
        assert!(error.contains(part), "{text}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}
