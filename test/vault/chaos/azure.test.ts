import t from 'tap'
import { azureSubject } from './azure.ts'
import { chaos } from './chaos.ts'
import { credentials } from './credentials.ts'

await chaos(t, 'azure', () => azureSubject('azure', pair => [JSON.stringify(pair)]), credentials)
