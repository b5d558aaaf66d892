/** The gateway at a glance: numbers, and how they moved in the last minutes. */

import type { ComponentType } from "preact";
import { useEffect, useState } from "preact/hooks";
import { bytes, count, duration } from "../lib/format";
import type { Json } from "../lib/types";
import { Refusal } from "./parts";
import { level, names, rate, samples, statsError, total, watch } from "./stats";

type ChartComponent = typeof import("./Chart").Chart;

const COLORS = ["--chart-1", "--chart-2", "--chart-3", "--chart-4", "--chart-5"];

const perSecond = (value: number) => (value < 10 ? value.toFixed(1) : count(value));

export function Overview() {
  const [Chart, setChart] = useState<ChartComponent | null>(null);
  useEffect(watch, []);
  useEffect(() => {
    // The library that draws is read when there is something to draw.
    import("./Chart").then((module) => setChart(() => module.Chart));
  }, []);
  const last = samples.value.at(-1)?.stats;
  if (!last) return statsError.value ? <Refusal error={statsError.value} /> : <Waiting />;
  return (
    <div class="overview">
      <Tiles stats={last} />
      {Chart ? <Charts Chart={Chart} /> : <div class="charts waiting" />}
      {isWhole(last) && (
        <div class="breakdowns">
          <Breakdown
            title="Requests by outcome"
            entries={names((stats) => stats.requests)}
            good="ok"
          />
          <Breakdown title="Errors by code" entries={names((stats) => stats.errors)} />
          <Breakdown
            title="Messages received"
            entries={names((stats) => stats.messages?.in)}
            plain
          />
          <Breakdown title="Messages sent" entries={names((stats) => stats.messages?.out)} plain />
        </div>
      )}
    </div>
  );
}

/** Whether the counts of everybody together are there: not for a credential with patterns. */
const isWhole = (stats: Json): boolean => stats.messages !== undefined;

function Waiting() {
  return (
    <div class="overview" aria-busy="true">
      <div class="tiles waiting" />
      <div class="charts waiting" />
    </div>
  );
}

function Tiles({ stats }: { stats: Json }) {
  const tiles: [string, string, string?][] = [
    ["Connections", count(stats.connections), `${count(stats.authenticated)} signed in`],
    ["Sessions", count(stats.sessions)],
    ["Agents online", count(stats.agents?.online ?? 0), `of ${count(stats.agents?.total ?? 0)}`],
    ["Open requests", count(stats.openRequests)],
    ["Slow clients", count(stats.slowClients), `${bytes(stats.bufferedBytes)} queued`],
    ["Failed sign-ins", count(stats.authFailures ?? 0)],
    [
      "Loop lag",
      `${stats.loopLagMs < 10 ? stats.loopLagMs.toFixed(1) : Math.round(stats.loopLagMs)} ms`,
      "worst of 10 s",
    ],
    ["Uptime", duration(stats.uptime * 1000), `version ${stats.version}`],
  ];
  const shown = tiles.filter(([name]) => name !== "Failed sign-ins" || isWhole(stats));
  return (
    <dl class="tiles">
      {shown.map(([name, value, note]) => (
        <div class="tile" key={name}>
          <dt class="muted small">{name}</dt>
          <dd class="num">{value}</dd>
          <dd class="muted small tile-note">{note ?? "\u00a0"}</dd>
        </div>
      ))}
    </dl>
  );
}

function Charts({ Chart }: { Chart: ChartComponent | ComponentType<Json> }) {
  const times = samples.value.map(({ at }) => at);
  const Drawn = Chart as ChartComponent;
  const line = (label: string, values: (number | null)[], color = 0) => ({
    label,
    values,
    color: COLORS[color % COLORS.length] as string,
  });
  const whole = isWhole(samples.value.at(-1)?.stats ?? {});
  const outcomes = names((stats) => stats.requests).slice(0, 3);
  const codes = names((stats) => stats.errors).slice(0, 3);
  return (
    <div class="charts">
      {whole && (
        <>
          <Drawn
            title="Messages per second"
            times={times}
            format={perSecond}
            lines={[
              line(
                "in",
                rate((stats) => stats.messages?.in),
              ),
              line(
                "out",
                rate((stats) => stats.messages?.out),
                1,
              ),
            ]}
          />
          <Drawn
            title="Deliveries per second"
            times={times}
            format={perSecond}
            lines={[
              line(
                "deliveries",
                rate((stats) => stats.deliveries),
              ),
            ]}
          />
        </>
      )}
      <Drawn
        title="Connections"
        times={times}
        format={count}
        lines={[
          line(
            "open",
            level((stats) => stats.connections),
          ),
          line(
            "slow",
            level((stats) => stats.slowClients),
            2,
          ),
        ]}
      />
      <Drawn
        title="Send queues"
        times={times}
        format={bytes}
        lines={[
          line(
            "queued",
            level((stats) => stats.bufferedBytes),
            3,
          ),
        ]}
      />
      {whole && (
        <>
          <Drawn
            title="Requests per second"
            times={times}
            format={perSecond}
            lines={
              outcomes.length > 0
                ? outcomes.map(([name], index) =>
                    line(
                      name,
                      rate((stats) => stats.requests?.[name]),
                      index,
                    ),
                  )
                : [
                    line(
                      "requests",
                      rate((stats) => total(stats.requests)),
                    ),
                  ]
            }
          />
          <Drawn
            title="Errors per second"
            times={times}
            format={perSecond}
            lines={
              codes.length > 0
                ? codes.map(([name], index) =>
                    line(
                      name,
                      rate((stats) => stats.errors?.[name]),
                      index + 2,
                    ),
                  )
                : [
                    line(
                      "errors",
                      rate((stats) => stats.errors),
                      2,
                    ),
                  ]
            }
          />
        </>
      )}
    </div>
  );
}

function Breakdown({
  title,
  entries,
  good,
  plain,
}: {
  title: string;
  entries: [string, number][];
  good?: string;
  plain?: boolean;
}) {
  const most = Math.max(1, ...entries.map(([, value]) => value));
  return (
    <section class="breakdown">
      <h3>{title}</h3>
      {entries.length === 0 && <p class="muted small">None so far.</p>}
      <ul>
        {entries.slice(0, 8).map(([name, value]) => (
          <li key={name}>
            <span class="mono small clip">{name}</span>
            <span class="num small">{count(value)}</span>
            <span class={`meter ${plain ? "" : name === good ? "good" : "bad"}`} aria-hidden="true">
              <span style={{ transform: `scaleX(${value / most})` }} />
            </span>
          </li>
        ))}
      </ul>
    </section>
  );
}
