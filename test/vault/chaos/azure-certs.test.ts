import t from 'tap'
import { azureSubject } from './azure.ts'
import { certificates } from './certificates.ts'
import { chaos } from './chaos.ts'

await chaos(
  t,
  'azure-certs',
  () =>
    azureSubject('azure-certs', ({ cert, key }) => [`${key}\n${cert}`, 'application/x-pem-file']),
  certificates
)
