/** A small chart that moves with time. */
import { signal } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { theme } from "../lib/theme";

export interface Line {
  label: string;
  values: (number | null)[];
  color: string;
}

const HEIGHT = 120;

const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium", hourCycle: "h23" });

/** Redraws all charts when the system goes from light to dark. */
const scheme = signal(0);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  scheme.value++;
});

export function Chart({
  title,
  times,
  lines,
  format,
  note,
}: {
  title: string;
  times: number[];
  lines: Line[];
  format: (value: number) => string;
  note?: string;
}) {
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const [at, setAt] = useState<number | null>(null);
  const look = `${theme.value}${scheme.value}${lines.map((line) => line.label + line.color).join()}`;
  const formatRef = useRef(format);
  formatRef.current = format;

  useEffect(() => {
    const node = box.current;
    if (!node) return;
    const made = new uPlot(
      options(node, lines, (value) => formatRef.current(value), setAt),
      dataOf(times, lines),
      node,
    );
    plot.current = made;
    const observer = new ResizeObserver(() =>
      made.setSize({ width: node.clientWidth, height: HEIGHT }),
    );
    observer.observe(node);
    return () => {
      observer.disconnect();
      made.destroy();
      plot.current = null;
    };
  }, [look]);

  useEffect(() => {
    plot.current?.setData(dataOf(times, lines));
  }, [times, lines]);

  const index = at ?? times.length - 1;
  return (
    <figure class="chart">
      <figcaption>
        <h3>{title}</h3>
        <ul class="legend">
          {lines.map((line) => (
            <li key={line.label}>
              <span class="swatch" style={{ background: `var(${line.color})` }} />
              <span class="muted">{line.label}</span>
              <strong class="num">{format(line.values[index] ?? 0)}</strong>
            </li>
          ))}
        </ul>
        {note && <span class="muted small">{note}</span>}
      </figcaption>
      <div class="plot" ref={box} aria-hidden="true" />
    </figure>
  );
}

const dataOf = (times: number[], lines: Line[]): uPlot.AlignedData => [
  times,
  ...lines.map((line) => line.values),
];

function options(
  node: HTMLElement,
  lines: Line[],
  format: (value: number) => string,
  onCursor: (index: number | null) => void,
): uPlot.Options {
  const style = getComputedStyle(node);
  const color = (name: string) => style.getPropertyValue(name).trim();
  const axis = {
    stroke: color("--muted"),
    font: `11px ${style.fontFamily}`,
    ticks: { show: false },
  };
  return {
    width: node.clientWidth,
    height: HEIGHT,
    padding: [8, 2, 0, 0],
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
    scales: {
      // What is watched for a short while only is not drawn as if it were long.
      x: { time: true, range: (_, min, max) => [Math.min(min, max - 60), max] },
      y: { range: (_, __, max) => [0, Math.max(1, max * 1.15)] },
    },
    series: [
      {},
      ...lines.map((line) => ({
        stroke: color(line.color),
        fill:
          lines.length === 1
            ? `color-mix(in srgb, ${color(line.color)} 14%, transparent)`
            : undefined,
        width: 1.75,
        points: { show: false },
      })),
    ],
    axes: [
      {
        ...axis,
        size: 24,
        space: 90,
        grid: { show: false },
        values: (_, splits) => splits.map((at) => clock.format(at * 1000)),
      },
      {
        ...axis,
        size: 46,
        space: 36,
        grid: { stroke: color("--line"), width: 1 },
        values: (_, splits) => splits.map((value) => format(value)),
      },
    ],
    hooks: {
      setCursor: [(u) => onCursor(u.cursor.idx ?? null)],
    },
  };
}
