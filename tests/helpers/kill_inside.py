"""Runs a script and kills it (SIGKILL) inside a chosen act.

python kill_inside.py SCRIPT ACT COUNT [the script's arguments]

Acts: `savez` in the midst of the bytes of a checkpoint, `append` in the midst of what is appended to a log's rows or to
the actions, `rename` and `renamed` just before and after a file takes its place, `saved` after a checkpoint's bytes or
any file are in place, `unlink` before a file is removed, `evaluate` when an evaluation begins, `chunk` before steps are
made. The COUNT-th time it happens, the process is gone.
"""

import importlib.util
import io
import os
import signal
import sys
from pathlib import Path


def main():
    name, act, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent.parent.parent / "algos" / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    sys.modules[name] = script
    spec.loader.exec_module(script)
    left = [count]

    def due():
        left[0] -= 1
        return left[0] == 0

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def before(function):
        return lambda *args, **options: die() if due() else function(*args, **options)

    def after(function):
        def wrapped(*args, **options):
            result = function(*args, **options)
            return die() if due() else result

        return wrapped

    def torn(savez):
        def wrapped(file, **arrays):
            if not due():
                return savez(file, **arrays)
            whole = io.BytesIO()
            savez(whole, **arrays)
            file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
            file.flush()
            die()

        return wrapped

    def torn_append(path, content):
        if not due():
            return append(path, content)
        with open(path, "ab") as file:
            file.write(content[: len(content) // 2])
        die()

    append = getattr(script, "append", None)
    if act == "savez":
        script.np.savez = torn(script.np.savez)
    elif act == "append":
        script.append = torn_append
    elif act == "evaluate":
        script.evaluate = before(script.evaluate)
    elif act == "chunk":
        chunk = before(script.train_chunk)
        chunk.lower = script.train_chunk.lower  # it is compiled ahead
        script.train_chunk = chunk
    elif act == "saved":
        script.np.savez = after(script.np.savez)
        Path.rename = after(Path.rename)
    elif act == "unlink":
        Path.unlink = before(Path.unlink)
    elif act == "rename":
        Path.rename = before(Path.rename)
    elif act == "renamed":
        Path.rename = after(Path.rename)
    else:
        sys.exit(f"no act {act!r}")
    sys.argv = [str(script.__file__), *sys.argv[4:]]
    script.main(script.tyro.cli(script.Args))


if __name__ == "__main__":
    main()
