/** The part of a report that the picture shows. */
export interface Pictured {
  readonly date: string
  readonly machine: string
  readonly scenarios: Readonly<
    Record<
      string,
      {
        readonly what: string
        readonly rows: readonly {
          readonly proxy: string
          readonly ratio: number
          readonly requestsPerSecond: number
        }[]
      }
    >
  >
}

const SHOWN = ['small-64', '10k-64', 'upload-64', 'tls-64']
const ROW = 22
const LEFT = 190
const WIDTH = 820

const markup = (text: string): string =>
  text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;')

/** A bar chart of throughput relative to stock @fastify/http-proxy, as SVG. */
export function picture({ date, machine, scenarios }: Pictured): string {
  const parts: string[] = []
  let y = 56
  for (const name of SHOWN) {
    const scenario = scenarios[name]
    if (scenario === undefined) continue
    const largest = Math.max(...scenario.rows.map(({ ratio }) => ratio))
    parts.push(`<text x="20" y="${y}" class="h">${markup(scenario.what)}</text>`)
    y += 12
    for (const { proxy, ratio, requestsPerSecond } of scenario.rows) {
      const width = Math.max(2, ((WIDTH - LEFT - 190) * ratio) / largest)
      const own = proxy.startsWith('postern')
      parts.push(
        `<text x="${LEFT - 8}" y="${y + 14}" text-anchor="end">${markup(proxy)}</text>`,
        `<rect x="${LEFT}" y="${y + 2}" width="${width.toFixed(0)}" height="16" rx="2" class="${own ? 'o' : 'p'}"/>`,
        `<text x="${LEFT + width + 6}" y="${y + 14}">${ratio.toFixed(2)} × <tspan class="d">(${requestsPerSecond.toLocaleString('en')} /s)</tspan></text>`
      )
      y += ROW
    }
    y += 26
  }
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${y + 8}" font-family="system-ui,sans-serif" font-size="13">
<title>Throughput on one core, relative to stock @fastify/http-proxy</title>
<style>text{fill:#24292f}.h{font-weight:600}.d{fill:#6e7781}.o{fill:#1f6feb}.p{fill:#b8c0c8}.bg{fill:#fff}@media(prefers-color-scheme:dark){text{fill:#e6edf3}.d{fill:#8d96a0}.p{fill:#4d5560}.bg{fill:#0d1117}}</style>
<rect class="bg" width="100%" height="100%"/>
<text x="20" y="28" font-size="16" class="h">Throughput on one core, relative to stock @fastify/http-proxy</text>
${parts.join('\n')}
<text x="20" y="${y}" class="d" font-size="11">${markup(`${date} · medians of alternating rounds · ${machine}`)}</text>
</svg>
`
}
