"""The figures of a run of `make bench` as JSON, for whoever compares runs: `target/bench/results.json`.

    {"date": …, "machine": …, "load": …, "versions": …, "command": …, "rows": [
      {"work": "archive", "contender": "tidelog-parquet", "zstd": 1, "producer": "lz4",
       "cpu_us_per_record": 4.93, "wall_s": 9.1, "records_per_s": 54945, "rss_mib": 187}, …]}

What a work has no measure for is null: WAL and base backups have no records. They have `mib_per_s` and `cpu_s` instead, and what is
live has `partitions`; growth curves have points instead (`Results.curve`). Rows are medians over the turns of this run, RSS is the greatest. A run writes all that it measured and keeps
nothing of the one before, so that all rows are of one machine in one state.
"""

import json
import statistics


class Results:
    def __init__(self):
        self.rows = []

    def add(self, work, contender, measured, records=None, mib=None, **more):
        """`measured`: (cpu seconds, peak RSS in MiB, wall seconds) for each turn; none where it was not measured."""
        cpu, rss, wall = zip(*measured)
        cpu, wall = middle(cpu), middle(wall)
        row = {"work": work, "contender": contender, "zstd": None, "producer": None,
               "cpu_us_per_record": rounded(cpu and records and cpu / records * 1e6),
               "wall_s": rounded(wall), "records_per_s": rounded(wall and records and records / wall, 0),
               "rss_mib": rounded(max((each for each in rss if each is not None), default=None), 0)}
        if mib:
            row |= {"mib_per_s": rounded(wall and mib / wall, 0), "cpu_s": rounded(cpu)}
        self.rows.append(row | more)

    def curve(self, figure):
        """A row for each point of each curve: `{"work": "curves", "figure", "curve", "x", "y"}`."""
        for curve in figure.curves:
            self.rows += [{"work": "curves", "figure": figure.title, "curve": curve.name, "x": x, "y": rounded(y, 3)}
                          for x, y in curve.points]

    def write(self, path, facts):
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(dict(facts) | {"rows": self.rows}, indent=1) + "\n")
        unfinished.replace(path)


def middle(values):
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def rounded(value, places=2):
    return value if value is None else round(value, places) if places else round(value)
