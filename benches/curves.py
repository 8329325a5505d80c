"""Growth curves: what one record, and one question, costs as something grows. No curve may be worse than linear."""

import pathlib
import shutil
import time

from figures import Curve, Figure

SIZES = [100, 1_000, 10_000, 100_000, 900_000]
CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]


def measure_curves(run):
    """Tables of all curves, and the picture of them."""
    figures = [partitions(run), sizes(run), rates(run), codecs(run), replicas(run), *ages(run)]
    for figure in figures:
        run.table(figure.title, figure.head(), figure.rows())
        run.results.curve(figure)
    if run.picture:
        run.picture.write_text(Figure.drawing(figures))


def archived(run, topic, count, replicas=1, rate=None, **produced):
    """Archives a topic that was produced before, or that is produced at a rate meanwhile, and gives CPU seconds, peak RSS in MiB of
    the largest process, and seconds."""
    if rate is None:
        run.produce(topic, records=count, **produced)
    first = run.archiver(topic)
    others = [first.replica() for _ in range(replicas - 1)]
    start = time.monotonic()
    if rate is not None:
        run.produce(topic, records=count, rate=rate, **produced)
    first.wait(count)
    used = [each.stop() for each in (first, *others)]
    shutil.rmtree(first.directory)
    return sum(each.cpu for each in used), max(each.rss for each in used), time.monotonic() - start


def per_record(run, name, points):
    """A curve of µs a record, and of MiB, over `points`: x → (records, what `archived` takes besides)."""
    cpu, rss = Curve("µs of CPU a record"), Curve("peak RSS, MiB")
    for x, (topic, partitions, count, options) in points.items():
        run.topic(topic, partitions)
        spent, peak, _ = archived(run, topic, count, partitions=partitions, **options)
        cpu.add(x, spent / count * 1e6)
        rss.add(x, peak)
        run.say(f"{name} {x}: {spent / count * 1e6:.1f} µs a record, {peak:.0f} MiB")
    return [cpu, rss]


def partitions(run):
    count = run.count(200_000)
    points = {n: (f"curve-partitions-{n}", n, count, {}) for n in run.some([1, 10, 100, 1_000, 5_000])}
    return Figure(f"{count:,} records of 1 KB into the archive, by partitions", "partitions",
                  per_record(run, "partitions", points))


def sizes(run):
    total = run.count(200_000) * 1_000
    points = {size: (f"curve-size-{size}", 12, max(total // size, 20), {"value_bytes": size}) for size in run.some(SIZES)}
    cpu, rss = per_record(run, "bytes", points)
    each = Curve("ms of CPU a MB of values")
    for size, spent in cpu.points:
        each.add(size, spent / size * 1e3)
    return Figure(f"{total // 1_000_000:,} MB of values into the archive, by the size of one", "bytes of a value", [each, rss])


def rates(run):
    seconds = run.count(20)
    points = {rate: (f"curve-rate-{rate}", 12, rate * seconds, {"rate": rate}) for rate in run.some([1_000, 3_000, 10_000, 30_000])}
    return Figure(f"{seconds} s of records of 1 KB that come at a rate", "records a second", per_record(run, "rate", points))


def codecs(run):
    count = run.count(200_000)
    points = {codec: (f"curve-codec-{codec}", 12, count, {"codec": codec}) for codec in run.some(CODECS)}
    return Figure(f"{count:,} records of 1 KB into the archive, by the producer's codec", "codec",
                  per_record(run, "codec", points))


def replicas(run):
    seconds, rate = run.count(20), 10_000
    points = {n: (f"curve-replicas-{n}", 12, rate * seconds, {"rate": rate, "replicas": n}) for n in (1, 2)}
    return Figure(f"{rate:,} records of 1 KB a second for {seconds} s, by replicas: CPU of all, RSS of the largest", "replicas",
                  per_record(run, "replicas", points))


def ages(run):
    """Questions to archives of more and more segments: in one topic, and spread over topics of 200."""
    hour = ["--from", "2026-01-01T01:00:00Z", "--to", "2026-01-01T02:00:00Z"]
    for name, per_topic in (("in one topic", None), ("in topics of 200", 200)):
        asked = {"ls": ["ls"], "plan of an hour": ["replay", "--dry-run", "--to-stdout", *hour]}
        curves, memory = {each: Curve(f"{each}, s") for each in asked}, Curve("peak RSS, MiB")
        for segments in run.some([10, 1_000, 10_000, 100_000] if per_topic is None else [200, 2_000, 20_000, 200_000]):
            root = pathlib.Path(run.work, f"aged-{segments}-{per_topic or 1}")
            root.mkdir()
            topics = segments // per_topic if per_topic else 1
            run.tool("archive", "--root", root, "--segments", segments // topics, "--topics", topics)
            peaks = []
            for each, command in asked.items():
                used = min((run.ask(root, command) for _ in range(3)), key=lambda used: used.seconds)
                curves[each].add(segments, used.seconds)
                peaks.append(used.rss)
            memory.add(segments, max(peaks))
            shutil.rmtree(root)
        yield Figure(f"Questions to an archive, by its segments {name}", "segments", [*curves.values(), memory])
