# One of many processes: works in a directory of its own, where every answer is known, and in shared ones, where
# others may be faster. Prints how many rounds it made; any surprise is an exception.
import errno
import fcntl
import mmap
import os
import random
import shutil
import sys
import time

root, me, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
random.seed(me)
own = f"{root}/own/{me}"
shared = f"{root}/shared"
end = time.monotonic() + seconds
rounds = 0


def check(truth, what):
    if not truth:
        raise AssertionError(f"process {me}, round {rounds}: {what}")


def read(path):
    with open(path, "rb") as file:
        return file.read()


def lost_a_race(error):
    return error.errno in (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY)


while time.monotonic() < end:
    data = random.randbytes(random.choice((10, 5000, 70000)))
    name = f"{own}/file"
    with open(name, "wb") as file:
        file.write(data)
    check(read(name) == data, "read what was written")
    check(os.stat(name).st_size == len(data), "size")
    os.link(name, name + "-link")
    check(os.stat(name).st_nlink == 2, "link count")
    os.rename(name, name + "-renamed")
    check(not os.path.exists(name), "gone after rename")
    check(read(name + "-link") == data, "the other link")
    with open(name + "-renamed", "r+b") as file:
        with mmap.mmap(file.fileno(), len(data)) as mapping:
            mapping[0] = 65
            mapping[len(data) - 1] = 66
        file.seek(0, os.SEEK_END)
        file.write(b"end")
    changed = read(name + "-link")
    check(changed[0] == 65 and changed[-4:] == b"Bend" and len(changed) == len(data) + 3, "mapped write")
    file = open(name + "-link", "rb")
    os.unlink(name + "-renamed")
    os.unlink(name + "-link")
    check(file.read() == changed and os.fstat(file.fileno()).st_nlink == 0, "open after unlink")
    file.close()

    # A file of the lower layer of its own: copied up, removed, made anew.
    lower = f"{own}/sub/lower{rounds % 10}"
    if rounds < 10:
        check(read(lower) == f"{me} {rounds}".encode(), "lower data")
        inode = os.stat(lower).st_ino
        with open(lower, "ab") as file:
            file.write(b" appended")
        check(os.stat(lower).st_ino == inode, "inode number over copy-up")
        check(read(lower) == f"{me} {rounds} appended".encode(), "data after copy-up")
    elif rounds == 10:
        shutil.rmtree(f"{own}/sub")
        os.mkdir(f"{own}/sub")
        check(os.listdir(f"{own}/sub") == [], "nothing comes back")
    os.makedirs(f"{own}/a/b/c")
    os.rename(f"{own}/a/b", f"{own}/moved")
    check(os.listdir(f"{own}/moved") == ["c"], "moved directory")
    shutil.rmtree(f"{own}/moved")
    os.rmdir(f"{own}/a")

    # Shared files: read, copy up, append under a lock, rename back and forth.
    number = random.randrange(200)
    path = f"{shared}/{number % 10}/file{number}"
    try:
        with open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = os.fstat(file.fileno()).st_size
            check(size >= 20000, "a shared file shrank")
            file.seek(0, os.SEEK_END)
            file.write(b"%08d" % me)
            file.flush()
            # The open file may be one that has been renamed meanwhile, but never another's.
            check(os.fstat(file.fileno()).st_size == size + 8, "append under a lock")
            file.seek(size)
            check(file.read(8) == b"%08d" % me, "own append")
            fcntl.flock(file, fcntl.LOCK_UN)
    except FileNotFoundError:
        pass
    try:
        os.rename(path, path + "-away")
        os.rename(path + "-away", path)
    except OSError as error:
        if not lost_a_race(error):
            raise
    # A name that goes and comes back while others list may be listed at both places, as on btrfs and tmpfs; but
    # nobody makes other names.
    listing = set(os.listdir(f"{shared}/{number % 10}"))
    names = {f"file{i}" for i in range(number % 10, 200, 10)}
    check(listing <= names | {name + "-away" for name in names}, f"strange names in {listing}")
    try:
        os.mkdir(f"{shared}/meeting")
        os.rmdir(f"{shared}/meeting")
    except OSError as error:
        if not lost_a_race(error):
            raise
    rounds += 1
print(rounds)
