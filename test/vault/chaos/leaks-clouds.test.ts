import t from 'tap'
import { leaks } from './leaks.ts'
import { azure, azureCerts, gcp } from './subjects.ts'

// Their SDKs take their time to load, so that each has a gateway of its own.
await t.test('gcp', t => leaks(t, 'gcp', [gcp]))
await t.test('azure', t => leaks(t, 'azure', [azure]))
await t.test('azure-certs', t => leaks(t, 'azure-certs', [azureCerts]))
