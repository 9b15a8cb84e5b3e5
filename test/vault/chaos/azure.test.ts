import t from 'tap'
import { chaos } from './chaos.ts'
import { credentials } from './credentials.ts'
import { azure } from './subjects.ts'

await chaos(t, 'azure', azure, credentials)
