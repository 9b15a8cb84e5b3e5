import type { Budget } from './budget.ts'
import { fuzzConfig } from './config.ts'
import { fuzzReferences } from './references.ts'
import { fuzzRequests } from './requests.ts'
import { fuzzRouter } from './router.ts'

/** Every fuzzer by the name it is run by; each throws what it finds, and gives how many inputs it saw. */
export const fuzzers: Readonly<Record<string, (budget: Budget) => Promise<number>>> = {
  requests: fuzzRequests,
  router: fuzzRouter,
  references: fuzzReferences,
  config: fuzzConfig
}
