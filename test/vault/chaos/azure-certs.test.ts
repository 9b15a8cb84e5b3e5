import t from 'tap'
import { certificates } from './certificates.ts'
import { chaos } from './chaos.ts'
import { azureCerts } from './subjects.ts'

await chaos(t, 'azure-certs', azureCerts, certificates)
