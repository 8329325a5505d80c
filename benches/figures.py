"""Curves as tables and as one SVG, without a library: a dozen lines on logarithmic axes need none."""

import html
import math

WIDTH, HEIGHT, COLUMNS = 400, 240, 2
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 44, 40
COLOURS = ["#1f6feb", "#bc4c00", "#1a7f37"]


class Curve:
    """One quantity over what grows."""

    def __init__(self, name):
        self.name, self.points = name, []

    def add(self, x, y):
        self.points.append((x, y))


class Figure:
    """Curves over the same x."""

    def __init__(self, title, x, curves):
        self.title, self.x, self.curves = title, x, curves

    def head(self):
        return [self.x, *(curve.name for curve in self.curves)]

    def rows(self):
        return [[shown(x), *(shown(curve.points[at][1]) for curve in self.curves)]
                for at, (x, _) in enumerate(self.curves[0].points)]

    @staticmethod
    def drawing(figures):
        """All figures on one sheet."""
        rows = -(-len(figures) // COLUMNS)
        sheet = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {COLUMNS * WIDTH} {rows * HEIGHT}" '
                 f'font-family="sans-serif" font-size="11" fill="#24292f">',
                 f'<rect width="{COLUMNS * WIDTH}" height="{rows * HEIGHT}" fill="#ffffff"/>']
        for at, figure in enumerate(figures):
            sheet += [f'<g transform="translate({at % COLUMNS * WIDTH} {at // COLUMNS * HEIGHT})">', *figure.panel(), "</g>"]
        return "\n".join([*sheet, "</svg>", ""])

    def panel(self):
        xs = [x for x, _ in self.curves[0].points]
        ys = [y for curve in self.curves for _, y in curve.points]
        is_counted = all(isinstance(x, (int, float)) for x in xs)
        # What is not counted stands at equal distances.
        places = dict(zip(xs, xs if is_counted else (10.0 ** n for n in range(len(xs)))))
        across = Axis(places.values(), LEFT, WIDTH - RIGHT)
        up = Axis(ys, HEIGHT - BOTTOM, TOP)
        yield text(LEFT, 16, self.title, "start", 'font-weight="bold" font-size="10"')
        for y in up.ticks():
            yield f'<path d="M{LEFT} {up(y):.1f}H{WIDTH - RIGHT}" stroke="#d0d7de"/>'
            yield text(LEFT - 6, up(y) + 4, shown(y), "end")
        for x in xs:
            yield text(across(places[x]), HEIGHT - BOTTOM + 15, shown(x), "middle")
        yield text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, self.x, "middle")
        for number, curve in enumerate(self.curves):
            colour = COLOURS[number % len(COLOURS)]
            yield text(LEFT + number * 112, 32, curve.name, "start", f'fill="{colour}"')
            dots = [(across(places[x]), up(y)) for x, y in curve.points]
            if is_counted:
                line = " ".join(f"{x:.1f},{y:.1f}" for x, y in dots)
                yield f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
            for x, y in dots:
                yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'


class Axis:
    """A logarithmic axis: from a value to its place."""

    def __init__(self, values, start, end):
        logs = [math.log10(max(value, 1e-3)) for value in values]
        self.least, self.most = min(logs), max(logs)
        if self.most - self.least < 0.3:
            self.least, self.most = self.least - 0.3, self.most + 0.3
        self.start, self.end = start, end

    def __call__(self, value):
        share = (math.log10(max(value, 1e-3)) - self.least) / (self.most - self.least)
        return self.start + share * (self.end - self.start)

    def ticks(self):
        """Powers of ten within, or round values where there is hardly one."""
        tens = [10.0 ** n for n in range(math.ceil(self.least - 1e-9), math.floor(self.most + 1e-9) + 1)]
        if len(tens) > 1:
            return tens
        between = [factor * 10.0 ** n for n in range(math.floor(self.least), math.ceil(self.most) + 1) for factor in (1, 2, 5)]
        return [each for each in between if self.least <= math.log10(each) <= self.most]


def shown(value):
    """A number with three digits."""
    if isinstance(value, str):
        return value
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def text(x, y, words, anchor, more=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{html.escape(words)}</text>'
