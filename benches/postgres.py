"""The section `postgres` of run.py: WAL and base backups, beside PostgreSQL's own tools, on one real server.

    catch up      WAL that pgbench has written: pg_receivewal --synchronous, --compress, tidelog
    standby       pgbench with nobody, pg_receivewal --synchronous and tidelog (ack = "spool") as synchronous standby
    base backup   pg_basebackup -z and tidelog backup, both with SHA-256 in the manifest
    recovery      a server that replays WAL: from pg_wal, by `zstd -dc` from a folder, by tidelog wal-fetch

The server is Debian's newest, with its defaults for durability (fsync on).
"""

import datetime
import os
import pathlib
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

MIB = 1 << 20
FILE = 16 * MIB


class Server:
    """One PostgreSQL server. It refuses root, so root becomes another user for it, as the rig does."""

    def __init__(self, programs, work, port, data=None, settings=()):
        self.programs, self.port, self.folder = programs, port, pathlib.Path(tempfile.mkdtemp(dir=work, prefix="pg-"))
        self.data = data or self.folder / "data"
        if data is None:
            self.run_as_user("initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "-D", self.data)
        own = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": self.folder, "max_wal_size": "4GB",
               "shared_buffers": "256MB", "max_replication_slots": 20, "max_wal_senders": 20, "autovacuum": "off"}
        settings = [part for name, value in {**own, **dict(settings)}.items() for part in ("-c", f"{name}={value}")]
        self.log = open(self.folder / "log", "w")
        self.process = subprocess.Popen(self.as_user("postgres", "-D", self.data, *settings), stdout=self.log,
                                        stderr=self.log)

    def as_user(self, program, *arguments):
        user = ["unshare", "--user", "--map-user=65534", "--map-group=65534"] if os.geteuid() == 0 else []
        return [str(word) for word in (*user, f"{self.programs}/bin/{program}", *arguments)]

    def run_as_user(self, program, *arguments):
        subprocess.run(self.as_user(program, *arguments), check=True, stdout=subprocess.DEVNULL, env=self.env())

    def env(self):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return {**clean, "PGHOST": str(self.folder), "PGPORT": str(self.port), "PGUSER": "postgres",
                "PGDATABASE": "postgres", "LC_ALL": "C.UTF-8"}

    def client(self, program, *arguments):
        return [f"{self.programs}/bin/{program}", *arguments]

    def psql(self, sql):
        said = subprocess.run(self.client("psql", "-XAtqc", sql), capture_output=True, text=True, env=self.env())
        if said.returncode != 0:
            raise RuntimeError(said.stderr.strip())
        return said.stdout.strip()

    def is_up(self):
        if self.process.poll() is not None:
            sys.exit(f"bench: error: PostgreSQL ended; its log is {self.log.name}")
        try:
            return self.psql("SELECT NOT pg_is_in_recovery()") == "t"
        except RuntimeError:
            return False

    def position(self):
        return lsn(self.psql("SELECT pg_current_wal_flush_lsn()"))

    def pgbench(self, *arguments):
        said = subprocess.run(self.client("pgbench", *map(str, arguments)), capture_output=True, text=True, check=True,
                              env=self.env())
        return said.stdout

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        self.process.wait()


def lsn(text):
    high, low = text.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def shown(position):
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class WalArchiver:
    """A `tidelog run` of one server's WAL, with an archive of its own."""

    def __init__(self, run, server, slot, ack="archive"):
        self.run, self.server = run, server
        self.folder = pathlib.Path(tempfile.mkdtemp(dir=run.work, prefix="wal-"))
        self.port, self.config = free_port(), self.folder / "tidelog.toml"
        self.config.write_text(f"""
[archive]
url = "file://{self.folder}/archive"
spool_dir = "{self.folder}/spool"
[postgres]
url = "postgres://postgres@127.0.0.1:{server.port}/postgres"
slot = "{slot}"
ack = "{ack}"
[http]
listen = "127.0.0.1:{self.port}"
""")

    def start(self):
        self.began, self.log = time.monotonic(), open(self.folder / "log", "a")
        self.process = subprocess.Popen([self.run.tidelog, "run", "-c", self.config], stdout=self.log, stderr=self.log)

    def durable(self):
        if self.process.poll() is not None:
            sys.exit(f"bench: error: tidelog ended early; its log is {self.folder}/log")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
                found = re.search(r"^tidelog_wal_durable_lsn_bytes (\S+)", answer.read().decode(), re.MULTILINE)
        except OSError:
            return 0
        return int(float(found[1])) if found else 0

    def wait(self, position):
        while self.durable() < position:
            time.sleep(0.05)
        return time.monotonic() - self.began

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.run.reap(self.process)

    def stored(self):
        return sum(path.stat().st_size for path in (self.folder / "archive/segments").rglob("*") if path.is_file())


def measure_postgres(run):
    server = Server(run.postgres, run.work, free_port())
    run.wait_for("PostgreSQL", 60, server.is_up)
    server.pgbench("-i", "-q", "-s", max(int(60 * run.scale), 2))
    catch_up(run, server)
    standby(run, server)
    archiver = base_backup(run, server)
    recovery(run, server, archiver)
    server.stop()


def contender(name):
    """Its name in results.json: that of the program, and what it was told if it was measured twice."""
    program, *options = name.split(" --synchronous")
    told = options[0].removeprefix(" --compress=") if options else ""
    return "tidelog" if program.startswith("tidelog") else " ".join(filter(None, (program.removesuffix(" -z"), told)))


def catch_up(run, server):
    """Everything is in the server's files before anybody begins, and every contender has a slot at the same place."""
    wanted = int(2048 * run.scale) * MIB
    variants = {"pg_receivewal --synchronous": ["--synchronous"], "pg_receivewal --synchronous --compress=gzip:1":
                ["--synchronous", "--compress=gzip:1"], "pg_receivewal --synchronous --compress=lz4":
                ["--synchronous", "--compress=lz4"], "tidelog, zstd": None}
    waiting = {}
    # A new slot begins where the last checkpoint would redo from, tidelog with the file that is being written: the same.
    server.psql("CHECKPOINT")
    server.psql("SELECT pg_switch_wal()")
    server.psql("CHECKPOINT")
    for turn in range(run.repeat):
        for name in variants:
            slot = f"bench_{len(waiting)}"
            if variants[name] is None:
                archiver = waiting[name, turn] = WalArchiver(run, server, slot)
                archiver.start()
                archiver.wait(server.position() // FILE * FILE + 1)
                archiver.stop()
            else:
                server.psql(f"SELECT pg_create_physical_replication_slot('{slot}', true)")
                waiting[name, turn] = slot
    start = server.position()
    while server.position() - start < wanted:
        server.pgbench("-n", "-c", 8, "-j", 2, "-T", 5)
    # pg_receivewal compresses whole files only, so that all of them end with one.
    server.psql("SELECT pg_switch_wal()")
    end = server.position() // FILE * FILE
    server.psql("CHECKPOINT")
    size = (end - start) / MIB
    results = {name: [] for name in variants}
    for turn in range(run.repeat):
        for name, options in variants.items():
            if options is None:
                archiver = waiting[name, turn]
                archiver.start()
                seconds = archiver.wait(end)
                cpu, rss = archiver.stop()
                stored = archiver.stored()
                shutil.rmtree(archiver.folder)
            else:
                folder = pathlib.Path(tempfile.mkdtemp(dir=run.work, prefix="received-"))
                began = time.monotonic()
                process = subprocess.Popen(server.client("pg_receivewal", "-D", folder, "-S", waiting[name, turn],
                                                         "--no-loop", f"--endpos={shown(end)}", *options), env=server.env())
                cpu, rss = run.reap(process)
                seconds = time.monotonic() - began
                stored = sum(path.stat().st_size for path in folder.iterdir())
                shutil.rmtree(folder)
            results[name].append((size / seconds, cpu, rss, stored, seconds))
            run.say(f"{name}: {size / seconds:.0f} MiB/s, {cpu:.2f} s CPU")
    for slot in server.psql("SELECT slot_name FROM pg_replication_slots").split():
        server.psql(f"SELECT pg_drop_replication_slot('{slot}')")
    base = statistics.median(speed for speed, *_ in results["pg_receivewal --synchronous"])
    rows = []
    for name, measured in results.items():
        speed = statistics.median(speed for speed, *_ in measured)
        cpu = statistics.median(cpu for _, cpu, *_ in measured)
        rows.append([name, f"{speed:.0f}", f"{speed / base:.2f}", f"{cpu:.2f}", f"{max(each[2] for each in measured):.0f}",
                     f"{size * MIB / measured[0][3]:.1f}"])
        run.results.add("wal", contender(name), [(cpu, rss, seconds) for _, cpu, rss, _, seconds in measured], mib=size)
    run.table(f"{size:,.0f} MiB of WAL by pgbench, to catch up with",
              ["", "MiB/s", "to --synchronous", "CPU s", "peak RSS MiB", "compression"], rows)


def standby(run, server):
    """Commits wait until the standby has made them durable."""
    seconds = max(int(20 * run.scale), 5)
    results = {"nobody": [], "pg_receivewal --synchronous": [], 'tidelog, ack = "spool"': []}
    for turn in range(run.repeat):
        for name in results:
            slot, stop = f"standby_{turn}", lambda: None
            if name.startswith("pg_receivewal"):
                server.psql(f"SELECT pg_create_physical_replication_slot('{slot}', true)")
                folder = tempfile.mkdtemp(dir=run.work)
                process = subprocess.Popen(server.client("pg_receivewal", "-D", folder, "-S", slot, "--synchronous"),
                                           env=server.env(), stderr=subprocess.DEVNULL)

                def stop(process=process):
                    process.send_signal(signal.SIGINT)
                    process.wait()
            elif name.startswith("tidelog"):
                archiver = WalArchiver(run, server, slot, ack="spool")
                archiver.start()
                stop = archiver.stop
            if name != "nobody":
                server.psql("ALTER SYSTEM SET synchronous_standby_names = '*'")
                server.psql("SELECT pg_reload_conf()")
                run.wait_for("a synchronous standby", 60,
                             lambda: server.psql("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") == "1")
            said = server.pgbench("-n", "-c", 8, "-j", 2, "-T", seconds)
            results[name].append(float(re.search(r"tps = ([\d.]+)", said)[1]))
            run.say(f"standby, {name}: {results[name][-1]:.0f} tps")
            server.psql("ALTER SYSTEM RESET synchronous_standby_names")
            server.psql("SELECT pg_reload_conf()")
            stop()
            if name != "nobody":
                run.wait_for("the slot", 30, lambda: server.psql("SELECT count(*) FROM pg_stat_replication") == "0")
                server.psql(f"SELECT pg_drop_replication_slot('{slot}')")
    base = statistics.median(results["pg_receivewal --synchronous"])
    rows = [[name, f"{statistics.median(tps):,.0f}", f"{statistics.median(tps) / base:.2f}"] for name, tps in results.items()]
    run.table(f"pgbench with 8 clients for {seconds} s, its commits held by a synchronous standby",
              ["standby", "tps", "to pg_receivewal"], rows)


def base_backup(run, server):
    """Gives the archiver with the last backup, running."""
    archiver = WalArchiver(run, server, "backups")
    archiver.start()
    archiver.wait(server.position() // FILE * FILE + 1)
    size = int(server.psql("SELECT sum(pg_database_size(oid)) FROM pg_database")) / MIB
    results = {"pg_basebackup -z": [], "tidelog backup": []}
    for _ in range(run.repeat):
        for name in results:
            server.psql("CHECKPOINT")
            began = time.monotonic()
            if name.startswith("pg_"):
                folder = tempfile.mkdtemp(dir=run.work)
                process = subprocess.Popen(server.client("pg_basebackup", "-D", folder, "-Ft", "-z", "-X", "none", "-c", "fast",
                                                         "--manifest-checksums=SHA256"), env=server.env(), stderr=subprocess.DEVNULL)
            else:
                process = subprocess.Popen([run.tidelog, "backup", "-c", archiver.config], stdout=subprocess.DEVNULL,
                                           stderr=archiver.log)
            cpu, rss = run.reap(process)
            results[name].append((time.monotonic() - began, cpu, rss))
            run.say(f"{name}: {results[name][-1][0]:.1f} s")
            if name.startswith("pg_"):
                shutil.rmtree(folder)
    base = statistics.median(seconds for seconds, *_ in results["pg_basebackup -z"])
    rows = []
    for name, measured in results.items():
        seconds = statistics.median(seconds for seconds, *_ in measured)
        rows.append([name, f"{seconds:.1f}", f"{base / seconds:.2f}", f"{statistics.median(cpu for _, cpu, _ in measured):.1f}",
                     f"{max(rss for *_, rss in measured):.0f}"])
        run.results.add("backup", contender(name), [(cpu, rss, seconds) for seconds, cpu, rss in measured], mib=size)
    run.table(f"Base backup of {size:,.0f} MiB, SHA-256 manifest",
              ["", "seconds", "times as fast", "CPU s of the client", "peak RSS MiB"], rows)
    return archiver


def recovery(run, server, archiver):
    """The redo of a restored server by its own account, with the same WAL from different places."""
    start = server.position()
    wanted = int(1024 * run.scale) * MIB
    while server.position() - start < wanted:
        server.pgbench("-n", "-c", 8, "-j", 2, "-T", 5)
    server.psql("SELECT pg_switch_wal()")
    end = server.position() // FILE * FILE
    archiver.wait(end)
    local, plain, restored = run.work / "local", run.work / "plain", run.work / "restored"
    restore = [run.tidelog, "restore-postgres", "-c", archiver.config, "--into", restored, "--to-lsn", shown(end - FILE + 256),
               "--action", "shutdown"]
    subprocess.run(restore, check=True, stdout=subprocess.DEVNULL, stderr=archiver.log)
    for folder in (local, plain):
        folder.mkdir()
    for path in (server.data / "pg_wal").glob("0" * 7 + "1*"):
        if int(path.name[8:16], 16) << 32 | int(path.name[16:], 16) * FILE < end:
            shutil.copyfile(path, local / path.name)
            subprocess.run(["zstd", "-q", "-1", path, "-o", plain / f"{path.name}.zst"], check=True)
    # What stands on the command line goes before what the restore has written.
    commands = {"WAL in pg_wal": "false", "zstd -dc": f"zstd -q -d -c {plain}/%f.zst > %p", "tidelog wal-fetch": None}
    results = {name: [] for name in commands}
    for _ in range(run.repeat):
        for name, command in commands.items():
            data = run.work / "recovering"
            shutil.copytree(restored, data, copy_function=shutil.copyfile)
            data.chmod(0o700)
            if name == "WAL in pg_wal":
                shutil.copytree(local, data / "pg_wal", dirs_exist_ok=True)
            subprocess.run(["sync"], check=True)
            given = {"restore_command": command} if command else {}
            recovering = Server(run.postgres, run.work, free_port(), data, given)
            recovering.process.wait()
            log = (recovering.folder / "log").read_text()
            begun, done = (re.search(rf"^(\S+ \S+) .*{what}", log, re.MULTILINE) for what in ("redo starts at", "recovery stopping"))
            if not begun or not done:
                sys.exit(f"bench: error: no recovery by {name}: {log[-2000:]}")
            begun, done = (datetime.datetime.fromisoformat(each[1]) for each in (begun, done))
            results[name].append((done - begun).total_seconds())
            run.say(f"recovery, {name}: {results[name][-1]:.2f} s")
            shutil.rmtree(data)
    archiver.stop()
    bound = statistics.median(results["WAL in pg_wal"])
    base = statistics.median(results["zstd -dc"])
    rows = []
    for name, measured in results.items():
        seconds = statistics.median(measured)
        waits = "" if name == "WAL in pg_wal" else f"{(seconds - bound) / ((end - start) / FILE) * 1000:.0f}"
        rows.append([name, f"{seconds:.2f}", f"{base / seconds:.2f}", waits])
        run.results.add("restore", contender(name), [(None, None, each) for each in measured], mib=(end - start) / MIB)
    run.table(f"Redo of {(end - start) / MIB:,.0f} MiB of WAL", ["", "seconds", "times as fast", "ms a file beyond pg_wal"], rows)
