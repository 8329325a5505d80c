#!/usr/bin/env python3
"""`make bench`: CPU and memory of tidelog beside the bound and the alternatives, on one real broker.

    run.py [--write FILE] [--records N] [--repeat N] [--scale X] [SECTION…]
    run.py --short               archive, replay and live in a few minutes: what `make bench-quick` says of a change
    run.py --quick [SECTION…]    every section with a few records and the debug build: whether they run, not how fast

    archive   a topic of a million records: tidelog, the bound, and what people use instead
    replay    that archive into a new topic, beside kafka-producer-perf-test
    live      1,000 records a second, 10,000 over 50 partitions, 1,000 partitions
    idle      5,000 partitions in which nothing happens, beside kcat as a group's member
    plan      ls and replay --dry-run over 100,000 segments, and over 1,000 topics
    curves    what a record and a question cost as partitions, sizes, rates and archives grow (curves.py)
    postgres  WAL, base backups and recovery beside PostgreSQL's own tools (postgres.py)

CPU is user + system of the measured processes alone, from the kernel's own accounts (wait4, /proc/PID/stat), so that
a busy machine blurs it less than it blurs the clock. The variants take turns, `--repeat` times, and the medians count.
Figures go to bench/results.json beside the programs' folder, too (results.py says in which shape).
The programs come from target/release (or CARGO_TARGET_DIR), the servers and Python packages from tests/rig/setup.sh.
"""

import argparse
import copy
import datetime
import functools
import json
import os
import pathlib
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import curves
import postgres
from results import Results

ROOT = pathlib.Path(__file__).resolve().parent.parent
QUICK = "--quick" in sys.argv[1:]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / ("debug" if QUICK else "release")
TIDELOG, TOOL = TARGET / "tidelog", TARGET / "tidelog-bench"
TOPIC, PARTITIONS = "bench", 12
EVENT_BYTES = 1014  # about; what one event of tool.rs holds
SHORT = ["archive", "replay", "live"]
SECTIONS = ["archive", "replay", "live", "idle", "plan", "curves", "postgres"]
TICK = os.sysconf("SC_CLK_TCK")
# The names in results.json.
CONTENDERS = {
    "bound": "bound", "kcat \\| zstd": "kcat", "tidelog, Parquet": "tidelog-parquet", "tidelog, Avro": "tidelog-avro",
    "confluent-kafka + pyarrow": "python", "kafka-console-consumer \\| zstd": "console-consumer",
}


# ---- processes


class Used:
    """What one or more processes used: CPU seconds, peak RSS in MiB, and the seconds that passed."""

    def __init__(self, cpu, rss, seconds):
        self.cpu, self.rss, self.seconds = cpu, rss, seconds

    def as_row(self):
        """What results.py takes."""
        return self.cpu, self.rss, self.seconds


def pipeline(*commands, **options):
    """Runs commands joined by pipes, and gives what they used together."""
    start = time.monotonic()
    processes, source = [], subprocess.DEVNULL
    for command in commands:
        last = command is commands[-1]
        output = options.get("stdout", subprocess.DEVNULL) if last else subprocess.PIPE
        process = subprocess.Popen([str(word) for word in command], stdin=source, stdout=output,
                                   stderr=subprocess.DEVNULL, env=options.get("env"))
        if source is not subprocess.DEVNULL:
            source.close()
        source = process.stdout
        processes.append((command, process))
    return together([reap(process, command) for command, process in processes], start)


def reap(process, command):
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"bench: error: {command[0]} ended with {process.returncode}")
    return usage


def together(usages, start):
    cpu = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    return Used(cpu, sum(usage.ru_maxrss for usage in usages) / 1024, time.monotonic() - start)


def output(*command):
    result = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, check=False)
    return result.stdout.strip()


def cpu_of(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def peak_of(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 1024


# ---- the broker


class Broker:
    """One Kafka broker, as tests/rig starts it, but with a heap and a compiler for longer runs."""

    def __init__(self, rig, work):
        self.work, self.libraries = work, f"{rig}/libs/*"
        data = work / "kafka" / "data"
        data.mkdir(parents=True)
        port, controller = free_ports(2)
        self.bootstrap = f"127.0.0.1:{port}"
        # Any ids will do; they are 16 bytes in base64.
        (data / "meta.properties").write_text(
            "version=1\ncluster.id=bench-bench-bench-benQ\nnode.id=1\ndirectory.id=bench-bench-bench-beng\n")
        shutil.copy(f"{rig}/bootstrap.checkpoint", data)
        properties = work / "kafka" / "server.properties"
        properties.write_text(f"""
node.id=1
process.roles=broker,controller
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://{self.bootstrap},CONTROLLER://127.0.0.1:{controller}
controller.listener.names=CONTROLLER
log.dirs={data}
auto.create.topics.enable=false
default.replication.factor=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
log.retention.ms=-1
""")
        log = open(work / "kafka" / "log", "w")
        self.process = subprocess.Popen(self.java("kafka.Kafka", properties, heap="1g"), env=self.env(),
                                        stdout=log, stderr=log)
        wait_for("the broker", 120, lambda: self.process.poll() is not None or answers(port))
        if self.process.poll() is not None:
            sys.exit(f"bench: error: the broker ended; its log:\n{(work / 'kafka' / 'log').read_text()[-4000:]}")

    def java(self, main, *arguments, heap="512m"):
        log = ROOT / "tests/rig/kafka/log4j2.properties"
        return ["java", f"-Xmx{heap}", f"-Dlog4j2.configurationFile={log}", main, *arguments]

    def env(self):
        return {**os.environ, "CLASSPATH": self.libraries}

    def stop(self):
        self.process.kill()
        self.process.wait()


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(what, seconds, condition, every=0.2):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"bench: error: waited {seconds} s for {what}")
        time.sleep(every)


# ---- tidelog


class Archiver:
    """A `tidelog run` with an archive of its own."""

    def __init__(self, broker, work, topic, form="parquet", level=3, max_age="15s"):
        self.directory = pathlib.Path(tempfile.mkdtemp(dir=work, prefix="archive-"))
        self.config = self.directory / "tidelog.toml"
        self.config.write_text(f"""
[archive]
url = "file://{self.directory}/archive"
spool_dir = "{self.directory}/spool"
[kafka]
cluster = "main"
bootstrap_servers = "{broker.bootstrap}"
group_id = "{self.directory.name}"
topics = ["{topic}"]
[kafka.segment]
format = "{form}"
compression = "zstd:{level}"
max_age = "{max_age}"
""")
        self.run()

    def run(self):
        self.start = time.monotonic()
        self.log = open(self.directory / "log", "a")
        self.process = subprocess.Popen([TIDELOG, "run", "-c", self.config], stdout=self.log, stderr=self.log)

    def replica(self):
        """Another process with the same archive and group."""
        other = copy.copy(self)
        other.run()
        return other

    def archived(self):
        """What `ls` says of the one topic; nothing before its first checkpoint."""
        if self.process.poll() is not None:
            sys.exit(f"bench: error: tidelog ended early; its log is {self.directory}/log")
        listed = subprocess.run([TIDELOG, "ls", "--json", "-c", self.config], capture_output=True, text=True)
        streams = json.loads(listed.stdout)["streams"] if listed.returncode == 0 else []
        return streams[0] if streams else {"records": 0}

    def wait(self, records):
        # `ls` is another process: that it is asked rarely keeps the machine free for what is measured.
        wait_for(f"{records} records in the archive", 900, lambda: self.archived()["records"] >= records,
                 every=0.5 if QUICK else 3)
        return self.archived()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return together([reap(self.process, ["tidelog"])], self.start)


# ---- sections


def measure_archive(run):
    """The table of CPU and memory, by variant."""
    run.fill()
    out = run.work / "out"

    def tidelog(form, level):
        archiver = Archiver(run.broker, run.work, TOPIC, form, level)
        stored = archiver.wait(run.records)["stored_bytes"]
        used = archiver.stop()
        if (form, level) == ("parquet", run.levels[-1]):
            run.archive, archiver = archiver, run.archive
        if archiver:
            shutil.rmtree(archiver.directory)
        return used, stored

    def to_file(*commands, env=None):
        used = pipeline(*commands, env=env)
        stored = out.stat().st_size
        out.unlink()
        return used, stored

    def zstd(level):
        return ["zstd", "-q", f"-{level}", "-T1", "-f", "-o", out]

    bootstrap, count = run.broker.bootstrap, run.records
    kcat = ["kcat", "-C", "-q", "-e", "-b", bootstrap, "-t", TOPIC, "-o", "beginning", "-f", "%T %k %h %s\n"]
    console = run.broker.java(
        "org.apache.kafka.tools.consumer.ConsoleConsumer", "--bootstrap-server", bootstrap, "--topic", TOPIC,
        "--from-beginning", "--max-messages", count, "--formatter-property", "print.key=true",
        "--formatter-property", "print.headers=true", "--formatter-property", "print.timestamp=true")

    variants = {}
    for level in run.levels:
        variants["bound", level] = lambda level=level: to_file(
            [TOOL, "bound", "--bootstrap", bootstrap, "--topic", TOPIC, "--partitions", PARTITIONS,
             "--records", count, "--level", level, "--out", out])
        variants["tidelog, Parquet", level] = lambda level=level: tidelog("parquet", level)
        variants["tidelog, Avro", level] = lambda level=level: tidelog("avro", level)
        variants["kcat \\| zstd", level] = lambda level=level: to_file(kcat, zstd(level))
        if run.short:
            continue
        variants["confluent-kafka + pyarrow", level] = lambda level=level: to_file(
            [f"{run.python}/bin/python", ROOT / "benches/pyarrow_sink.py", bootstrap, TOPIC, PARTITIONS, count,
             level, out])
        variants["kafka-console-consumer \\| zstd", level] = lambda level=level: to_file(
            console, zstd(level), env=run.broker.env())
    results = {key: [] for key in variants}
    for turn in range(run.repeat):
        for key, measure in variants.items():
            # The slow ones are far from the bound: once is enough.
            if turn == 0 or "tidelog" in key[0] or key[0] == "bound":
                used, stored = measure()
                results[key].append((used, stored))
                say(f"{key[0]} zstd {key[1]}: {used.cpu:.2f} s CPU, {used.rss:.0f} MiB")

    rows = []
    bounds = {level: statistics.median(used.cpu for used, _ in results["bound", level]) for level in run.levels}
    for (name, level), measured in results.items():
        cpu = statistics.median(used.cpu for used, _ in measured)
        rss = max(used.rss for used, _ in measured)
        ratio = run.records * EVENT_BYTES / measured[0][1]
        run.results.add("archive", CONTENDERS[name], [each.as_row() for each, _ in measured], run.records, zstd=level,
                        producer="lz4")
        rows.append([name, level, f"{cpu:.2f}", f"{cpu / run.records * 1e6:.2f}", f"{cpu / bounds[level]:.2f}",
                     f"{rss:.0f}", f"{ratio:.1f}"])
    rows.sort(key=lambda row: (row[1], float(row[4])))
    run.table(f"{run.records:,} records of 1 KB, {PARTITIONS} partitions, lz4 producer, into the archive",
              ["", "zstd", "CPU s", "µs a record", "to the bound", "peak RSS MiB", "compression"], rows)


def measure_replay(run):
    """The same records out again, acks=all."""
    if not run.archive:
        run.fill()
        run.archive = Archiver(run.broker, run.work, TOPIC)
        run.archive.wait(run.records)
        run.archive.stop()
    payload = run.work / "payload"
    pipeline([TOOL, "payload", "--records", 20_000, "--out", payload])
    rows, replayed, performed = [], [], []
    for turn in range(run.repeat):
        said = run.work / "said"
        with open(said, "w") as out:
            used = pipeline(
                [TIDELOG, "replay", "-c", run.archive.config, "--from", "2020-01-01T00:00:00Z", "--to", "now",
                 "--topics", f"^{TOPIC}$", "--rename", f"^{TOPIC}$=replayed-{turn}", "--yes", "--json"], stdout=out)
        records = json.loads(said.read_text())["records"]
        if records != run.records:
            sys.exit(f"bench: error: {records} records were replayed, not {run.records}")
        rows.append(row_of("tidelog replay", used, run.records))
        replayed.append(used.as_row())
        # lz4 and a linger: what a producer is given that is to be fast; the replay compresses, too.
        run.topic(f"perf-{turn}", PARTITIONS)
        used = pipeline(
            run.broker.java("org.apache.kafka.tools.ProducerPerformance", "--topic", f"perf-{turn}", "--num-records",
                            run.records, "--throughput", "-1", "--payload-file", payload, "--producer-props",
                            f"bootstrap.servers={run.broker.bootstrap}", "acks=all", "compression.type=lz4"),
            env=run.broker.env())
        rows.append(row_of("kafka-producer-perf-test, lz4", used, run.records))
        performed.append(used.as_row())
    for contender, measured in ("tidelog", replayed), ("perf-test", performed):
        run.results.add("replay", contender, measured, run.records, producer="lz4")
    run.table(f"{run.records:,} records out of the archive into a new topic, acks=all",
              ["", "records/s", "CPU s", "µs a record", "peak RSS MiB"], sorted(rows))


def row_of(name, used, records):
    return [name, f"{records / used.seconds:,.0f}", f"{used.cpu:.2f}", f"{used.cpu / records * 1e6:.2f}",
            f"{used.rss:.0f}"]


def measure_live(run):
    """Records that come at a rate."""
    rows = []
    for topic, partitions, rate in (("slow", 12, 1_000), ("wide", 50, 10_000), ("wider", 1_000, 10_000)):
        seconds = max(int(60 * run.scale), 3 if QUICK else 20)
        run.topic(topic, partitions)
        archiver = Archiver(run.broker, run.work, topic, max_age="20s")
        pid = archiver.process.pid
        wait_for("the group", 60, lambda: "partitions assigned" in (archiver.directory / "log").read_text())
        time.sleep(2)
        before, start = cpu_of(pid), time.monotonic()
        run.produce(topic, partitions, rate * seconds, rate)
        passed = time.monotonic() - start
        # Not before all of it is in the archive: what is encoded after the last record came belongs to it, too.
        archiver.wait(rate * seconds)
        spent = cpu_of(pid) - before
        rss = peak_of(pid)
        archive = archiver.directory / "archive"
        objects = sum(1 for part in ("segments", "manifest") for path in (archive / part).rglob("*") if path.is_file())
        archiver.stop()
        rows.append([f"{rate:,}/s, {partitions:,} partitions", f"{spent / (rate * seconds) * 1e6:.1f}",
                     f"{spent / passed * 100:.1f}", f"{rss:.0f}", objects, f"{(time.monotonic() - start) / 20:.1f}"])
        run.results.add("live", "tidelog-parquet", [(spent, rss, passed)], rate * seconds, zstd=3, producer="lz4",
                        partitions=partitions)
        say(f"live: {rows[-1]}")
        shutil.rmtree(archiver.directory)
    run.table("Live, Parquet, zstd 3, sealed every 20 s",
              ["", "µs a record", "% of a core", "peak RSS MiB", "objects", "sealing ages"], rows)


def measure_idle(run):
    """What it costs that nothing happens."""
    topics, partitions = (1, 20) if QUICK else (10, 500)
    seconds = max(int(60 * run.scale), 3)
    for number in range(topics):
        run.topic(f"idle.{number}", partitions)
    archiver = Archiver(run.broker, run.work, "^idle[.].*")
    log = archiver.directory / "log"
    member = subprocess.Popen(["kcat", "-q", "-b", run.broker.bootstrap, "-X", "auto.offset.reset=earliest", "-G", "idle-kcat",
                               "^idle[.].*"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for("the group", 120, lambda: "partitions assigned" in log.read_text())
    # Until the first claims of completeness are written, and all fetchers run.
    time.sleep(seconds / 2)
    processes = {"tidelog": archiver.process.pid, "kcat -G": member.pid}
    before = {name: cpu_of(pid) for name, pid in processes.items()}
    time.sleep(seconds)
    rows = [[name, f"{(cpu_of(pid) - before[name]) / seconds * 100:.1f}", f"{peak_of(pid):.0f}"]
            for name, pid in processes.items()]
    archiver.stop()
    member.kill()
    member.wait()
    run.table(f"Idle, {topics * partitions:,} partitions of {topics} topics", ["", "% of a core", "peak RSS MiB"], rows)


def measure_plan(run):
    """Readers of an old archive, and of one with many topics."""
    hour = ["--from", "2026-02-01T00:00:00Z", "--to", "2026-02-01T01:00:00Z"]
    all_time = ["--from", "2020-01-01T00:00:00Z", "--to", "2030-01-01T00:00:00Z"]
    for topics, segments in (1, int(100_000 * run.scale)), (int(1_000 * run.scale), 200):
        root = run.work / f"planned-{topics}"
        root.mkdir()
        pipeline([TOOL, "archive", "--root", root, "--segments", segments, "--topics", topics])
        commands = {
            "ls": ["ls"],
            "replay --dry-run of an hour": ["replay", "--dry-run", "--to-stdout", *hour],
            "replay --dry-run of everything": ["replay", "--dry-run", "--to-stdout", *all_time],
        }
        rows = []
        for name, command in commands.items():
            used = [run.ask(root, command) for _ in range(3)]
            rows.append([name, f"{min(each.seconds for each in used):.2f}", f"{min(each.cpu for each in used):.2f}",
                         f"{max(each.rss for each in used):.0f}"])
        run.table(f"A local archive of {topics:,} topic{'s' if topics > 1 else ''} with {segments:,} segments and checkpoints each",
                  ["", "seconds", "CPU s", "peak RSS MiB"], rows)


# ---- the run


class Run:
    def __init__(self, options, parts, work):
        self.records, self.repeat, self.scale = options.records, options.repeat, options.scale
        self.python, self.postgres, self.work = parts["RIG_PYTHON"], f"{parts['RIG_POSTGRES']}/debian", work
        self.kafka, self.archive, self.text, self.results = parts["RIG_KAFKA"], None, [], Results()
        self.short, self.levels = options.short, (1,) if options.short else (1, 3)
        self.tidelog, self.say, self.wait_for = TIDELOG, say, wait_for
        self.picture = pathlib.Path(options.write).parent / "curves.svg" if options.write else None

    @functools.cached_property
    def broker(self):
        return Broker(self.kafka, self.work)

    def stop(self):
        if "broker" in vars(self):
            self.broker.stop()

    def reap(self, process):
        """CPU seconds and peak RSS in MiB of a process that ends."""
        usage = reap(process, process.args)
        return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024

    def topic(self, topic, partitions):
        pipeline(self.broker.java("org.apache.kafka.tools.TopicCommand", "--bootstrap-server", self.broker.bootstrap,
                                  "--create", "--topic", topic, "--partitions", partitions), env=self.broker.env())

    def fill(self):
        self.topic(TOPIC, PARTITIONS)
        self.produce(TOPIC, PARTITIONS, self.records)

    def produce(self, topic, partitions, records, rate=None, **more):
        options = [word for name, value in {"rate": rate, **more}.items() if value for word in (f"--{name}", value)]
        self.tool("produce", "--bootstrap", self.broker.bootstrap, "--topic", topic, "--partitions", partitions,
                  "--records", records, *options)

    def tool(self, *words):
        pipeline([TOOL, *words])

    def archiver(self, topic):
        return Archiver(self.broker, self.work, topic, max_age="1s" if QUICK else "5s")

    def ask(self, root, command):
        """What a command over a local archive uses."""
        config = self.work / "asked.toml"
        config.write_text(f'[archive]\nurl = "file://{root}"\nspool_dir = "{self.work}/spool"\n')
        return pipeline([TIDELOG, *command, "-c", config])

    def count(self, wanted):
        """So many, or fewer where the figures need not mean anything."""
        return max(int(wanted * self.scale), 2)

    def some(self, points):
        return points[:1] if QUICK else points

    def table(self, title, head, rows):
        lines = [f"## {title}", "", line(head), line(["---"] + ["---:"] * (len(head) - 1)), *map(line, rows), ""]
        self.text += lines
        print("\n".join(lines), flush=True)


def line(cells):
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def machine(parts):
    """What the figures depend on."""
    cpu = next(each.split(":")[1].strip() for each in open("/proc/cpuinfo") if each.startswith("model name"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    kafka = next(pathlib.Path(parts["RIG_KAFKA"], "libs").glob("kafka-server-[0-9]*.jar"), None)
    kafka = kafka or next(pathlib.Path(parts["RIG_KAFKA"], "libs").glob("kafka_*.jar"))
    python = output(f"{parts['RIG_PYTHON']}/bin/python", "-c", "import confluent_kafka as c, pyarrow as p; "
                    "print('confluent-kafka', c.version()[0] if isinstance(c.version(), tuple) else c.version(),"
                    " 'pyarrow', p.__version__)")
    java = re.search(r'"([^"]+)"', output("java", "-version"))[1]
    kcat = re.search(r"Version (\S+) .*(librdkafka \S+)", output("kcat", "-V"), re.DOTALL)
    zstd = re.search(r"v(\d[\d.]+)", output("zstd", "-V"))[1]
    return [
        ("date", datetime.datetime.now(datetime.timezone.utc).strftime("%F")),
        ("machine", f"{os.cpu_count()} cores, {cpu}, {memory} GiB, Linux {platform.release().split('-')[0]}"),
        ("load", "1, 5, 15 minutes: " + ", ".join(f"{each:.1f}" for each in os.getloadavg())),
        ("versions", "; ".join([output(TIDELOG, "--version"), kafka.stem, f"OpenJDK {java}",
                                f"kcat {kcat[1]} ({kcat[2]})", python, f"zstd {zstd}",
                                output(f"{parts['RIG_POSTGRES']}/debian/bin/postgres", "--version")])),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="FILE", help="put the tables into FILE, below the line that says so")
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="shortens the sections live, idle, plan and postgres")
    parser.add_argument("--quick", action="store_true", help="a few records, the debug build: the figures mean nothing")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all if none is named")
    parser.add_argument("--short", action="store_true", help=f"{', '.join(SHORT)} with 300,000 records, one turn, zstd 1")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"there is no section {unknown.pop()!r}; choose from {', '.join(SECTIONS)}")
    if options.quick:
        if options.write:
            parser.error("--quick measures nothing that is worth keeping: leave out --write")
        options.records, options.repeat, options.scale = 5_000, 1, 0.01
    if options.short:
        if options.write:
            parser.error("--short measures each once: leave out --write")
        options.records, options.repeat, options.scale, options.sections = 300_000, 1, 0.33, options.sections or SHORT
    setup = subprocess.run(["bash", ROOT / "tests/rig/setup.sh", "bench"], stdout=subprocess.PIPE, text=True, check=True)
    parts = dict(each.split("=", 1) for each in setup.stdout.split())
    command = ("command", " ".join(["make bench, which is: benches/run.py", *sys.argv[1:]]))
    measures = {"archive": measure_archive, "replay": measure_replay, "live": measure_live, "idle": measure_idle,
                "plan": measure_plan, "curves": curves.measure_curves, "postgres": postgres.measure_postgres}
    with tempfile.TemporaryDirectory(prefix="tidelog-bench-") as work:
        run = Run(options, parts, pathlib.Path(work))
        try:
            for section in options.sections or SECTIONS:
                facts, run.text = [*machine(parts), command], []
                measures[section](run)
                run.results.write(TARGET.parent / "bench" / "results.json", facts)
                if options.write:
                    write(pathlib.Path(options.write), section, facts, run.text)
        finally:
            run.stop()


MARK = "<!-- below this line: written by benches/run.py --write -->\n"


def write(path, section, facts, text):
    """Puts a section's tables in its place; those of the others stay."""
    kept, _, tables = path.read_text().partition(MARK) if path.exists() else ("", "", "")
    sections = dict(each.split(" -->\n", 1) for each in tables.split("<!-- section ")[1:])
    sections[section] = "\n".join([*text, *(f"- {name}: {value}" for name, value in facts)])
    ordered = [f"<!-- section {name} -->\n\n{sections[name].strip()}\n" for name in SECTIONS if name in sections]
    path.write_text("\n".join([kept.rstrip("\n"), "", MARK, *ordered]))


if __name__ == "__main__":
    main()
