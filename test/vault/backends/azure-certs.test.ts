import { createPrivateKey, X509Certificate } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { createSecureContext } from 'node:tls'
import forge from 'node-forge'
import t, { type Test } from 'tap'
import { azureCertsBackend } from '../../../src/vault/backends/azure-certs.ts'
import { certificateFor, rsaCertificateFor } from '../../certificates.ts'
import { BY_SECRET, CLIENT_SECRET, startAzureCloud } from '../azure-server.ts'
import { backendContract } from '../backend-contract.ts'

const PKCS12 = 'application/x-pkcs12'
const PEM = 'application/x-pem-file'
const samples = await Promise.all(
  Array.from({ length: 13 }, async (_, n) => {
    const { cert, key } = await certificateFor(`canary-${n}.example`)
    return `${key}\n${cert}\n`
  })
)

await backendContract(t, 'azure-certs', async () => {
  const cloud = await startAzureCloud()
  const { azure } = cloud
  const notStored = 'this vault holds certificates alone'
  return {
    type: azureCertsBackend,
    config: BY_SECRET,
    environment: cloud.environment,
    secrets: [CLIENT_SECRET],
    put: async (resource, value) => azure.secrets.put(resource, value as string, PEM),
    remove: async resource => azure.secrets.remove(resource),
    resource: name => name,
    sample: n => samples[n]!,
    matches: ({ value }, put) =>
      (put as string).includes((value as { cert: string }).cert.trim().slice(30, 200)),
    fault: kind => azure.fault(kind),
    connections: () => azure.connections,
    close: () => cloud[Symbol.asyncDispose](),
    skip: { text: notStored, json: notStored, 'odd keys': notStored, unicode: notStored }
  }
})

async function open(t: Test) {
  const cloud = await startAzureCloud()
  const backend = await azureCertsBackend.open(BY_SECRET, cloud.environment)
  t.teardown(async () => {
    await backend.close!()
    await cloud[Symbol.asyncDispose]()
  })
  return {
    secrets: cloud.azure.secrets,
    async read(name: string): Promise<{ cert: string; key: string }> {
      const fetched = await backend.fetch(name, undefined, AbortSignal.timeout(10_000))
      return fetched!.value as { cert: string; key: string }
    }
  }
}

/** Fails unless TLS can be served with them. */
function assertServes(t: Test, { cert, key }: { cert: string; key: string }, name: string): void {
  t.doesNotThrow(() => createSecureContext({ cert, key }))
  const leaf = new X509Certificate(cert)
  t.match(leaf.subject, name)
  t.ok(leaf.checkPrivateKey(createPrivateKey(key)))
}

await t.test('PEM, with the key first or last', async t => {
  const { secrets, read } = await open(t)
  const { cert, key } = await rsaCertificateFor('gateway.example')
  for (const text of [cert + key, key + cert]) {
    secrets.put('site', text, PEM)
    assertServes(t, await read('site'), 'gateway.example')
  }
})

await t.test('PKCS#12 with an RSA key', async t => {
  const { secrets, read } = await open(t)
  const { cert, key } = await rsaCertificateFor('gateway.example')
  const pfx = forge.pkcs12.toPkcs12Asn1(
    forge.pki.privateKeyFromPem(key),
    [forge.pki.certificateFromPem(cert)],
    '',
    { algorithm: '3des' }
  )
  const base64 = forge.util.encode64(forge.asn1.toDer(pfx).getBytes())
  for (const type of [PKCS12, undefined]) {
    secrets.put('site', base64, type)
    assertServes(t, await read('site'), 'gateway.example')
  }
})

await t.test('PKCS#12 with an elliptic key and its chain, the leaf first', async t => {
  const { secrets, read } = await open(t)
  const file = join(import.meta.dirname, '../../fixtures/azure/ec-chain.pfx.txt')
  secrets.put('site', readFileSync(file, 'utf8').replace(/\s/g, ''), PKCS12)
  const pair = await read('site')
  assertServes(t, pair, 'gateway.example')
  const [, issuer] = pair.cert.match(/-----BEGIN[\s\S]*?-----END CERTIFICATE-----/g)!
  t.match(new X509Certificate(issuer!).subject, 'Test Authority')
})

await t.test('what is no certificate with its key is malformed, and not quoted', async t => {
  const { secrets, read } = await open(t)
  const { cert, key } = await certificateFor('gateway.example')
  const { key: foreign } = await certificateFor('another.example')
  for (const [value, type, message] of [
    ['canary', PKCS12, /neither PEM nor PKCS#12/],
    ['Y2FuYXJ5', PKCS12, /neither PEM nor PKCS#12/],
    ['{"canary":1}', 'application/json', /neither PEM nor PKCS#12/],
    ['-----BEGIN CERTIFICATE-----\ncanary\n-----END CERTIFICATE-----', PEM, /neither PEM/],
    [cert, PEM, /no private key: was it made exportable/],
    [key, PEM, /no certificate/],
    [`${cert}\n${foreign}`, PEM, /key is that of no certificate/]
  ] as const) {
    secrets.put('site', value, type)
    const error = await read('site').catch(error => error)
    t.equal(error.code, 'POSTERN_VAULT_MALFORMED')
    t.match(error.message, message)
    t.notMatch(error.message, /canary/)
  }
})
