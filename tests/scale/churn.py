# Creates, renames and deletes entries of a directory until it is told to stop.
import os
import sys

directory, stop = sys.argv[1:]
number = 0
while not os.path.exists(stop):
    names = [f"{directory}/churn-{number + i}" for i in range(50)]
    for name in names:
        open(name, "x").close()
    for name in names[::2]:
        os.rename(name, name + "-renamed")
    for name in names[::2]:
        os.unlink(name + "-renamed")
    for name in names[1::2]:
        os.unlink(name)
    number += 50
