import t from 'tap'
import { chaos } from './chaos.ts'
import { credentials } from './credentials.ts'
import { conjur } from './subjects.ts'

await chaos(t, 'conjur, a policy as one resource', conjur, credentials)
