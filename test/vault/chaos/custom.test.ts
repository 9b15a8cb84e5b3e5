import t from 'tap'
import { chaos } from './chaos.ts'
import { credentials } from './credentials.ts'
import { custom } from './subjects.ts'

await chaos(t, "a type of vault of one's own", custom, credentials)
