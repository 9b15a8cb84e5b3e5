import { Agent, request } from 'undici'

/** What traffic has met so far. */
export interface TrafficReport {
  readonly served: number
  /** Statuses other than 200, and errors. */
  readonly failures: readonly unknown[]
}

export interface Traffic {
  readonly report: TrafficReport
  /** Lets what is under way end, and tells what was met. */
  stop(): Promise<TrafficReport>
}

export interface TrafficOptions {
  readonly headers?: Readonly<Record<string, string>>
  /** Clients that each send one request after the other. */
  readonly clients?: number
  /** A new connection for each request, and another when that one breaks before any answer. */
  readonly reconnecting?: boolean
}

/** Good requests, one after the other, beside whatever else a test does. */
export function startTraffic(url: string, options: TrafficOptions = {}): Traffic {
  const { headers = {}, clients = 3, reconnecting = false } = options
  const agent = new Agent({ keepAliveTimeout: 1000, pipelining: reconnecting ? 0 : 1 })
  const failures: unknown[] = []
  let served = 0
  let running = true
  const send = async (tries: number): Promise<void> => {
    try {
      const { statusCode, body } = await request(url, {
        dispatcher: agent,
        headers: { ...headers }
      })
      await body.dump()
      if (statusCode === 200) served++
      else failures.push(statusCode)
    } catch (error) {
      if (tries > 1) await send(tries - 1)
      else failures.push(error)
    }
  }
  const loops = Array.from({ length: clients }, async () => {
    while (running) {
      await send(reconnecting ? 5 : 1)
      // Leaves the loop to others: this is company, not load.
      await new Promise(resolve => setTimeout(resolve, 5))
    }
  })
  return {
    get report() {
      return { served, failures }
    },
    async stop() {
      running = false
      await Promise.all(loops)
      await agent.destroy()
      return { served, failures }
    }
  }
}
