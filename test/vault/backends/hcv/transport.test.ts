import { once } from 'node:events'
import http from 'node:http'
import net, { type AddressInfo } from 'node:net'
import t from 'tap'
import { certificateFor } from '../../../certificates.ts'
import { startUpstream, until } from '../../../harness.ts'
import { appRole, folder, opener } from '../../hcv/scenarios.ts'
import { type FakeVault, type FakeVaultOptions, startFakeVault } from '../../hcv-server.ts'

async function withSecret(options?: FakeVaultOptions): Promise<FakeVault> {
  const vault = await startFakeVault(options)
  await vault.call('POST', 'secret/data/app', { data: { a: '1' } })
  return vault
}

await t.test('the vault’s certificate: trusted, for another name, unchecked', async t => {
  const tls = await certificateFor('vault.internal')
  const other = await certificateFor('other')
  await using vault = await withSecret({ tls })
  const { file } = await folder(t)
  const { open } = opener(t)
  const settings = { port: vault.port, protocol: 'https', token: 'root', kv: 'v2' }
  const named = { ...settings, ssl_server_name: 'vault.internal' }
  for (const ssl_ca of [tls.cert, `${other.cert}\n${tls.cert}`, await file('ca.pem', tls.cert)]) {
    t.ok(await (await open({ ...named, ssl_ca })).fetch('app'))
  }
  t.ok(await (await open({ ...settings, ssl_verify: false })).fetch('app'))
  const untrusted = [{}, { ssl_ca: other.cert }]
  for (const trust of untrusted) {
    await t.rejects((await open({ ...named, ...trust })).fetch('app'), {
      code: 'POSTERN_VAULT_UNREACHABLE',
      message: /not trusted; set ssl_ca/
    })
  }
  await t.rejects((await open({ ...settings, ssl_ca: tls.cert })).fetch('app'), {
    code: 'POSTERN_VAULT_UNREACHABLE',
    message: /another name; set ssl_server_name/
  })
  const client = { ssl_cert: tls.cert, ssl_cert_key: tls.key }
  const wrong: readonly (readonly [Readonly<Record<string, unknown>>, RegExp])[] = [
    [{ ssl_ca: '/nowhere/ca.pem' }, /ssl_ca is .* no file .*\(ENOENT \/nowhere\/ca\.pem\)/],
    [{ ssl_ca: await file('empty.pem', '') }, /ssl_ca holds no certificate/],
    [{ ssl_ca: tls.key }, /ssl_ca holds no certificate/],
    [{ ...client, ssl_cert: '/nowhere/tls.crt' }, /ssl_cert is .*\(ENOENT \/nowhere\/tls\.crt\)/],
    [{ ...client, ssl_cert_key: 'canary/key' }, /ssl_cert_key is .*\(ENOENT\)/],
    [{ ...client, ssl_cert_key: other.key }, /ssl_cert and ssl_cert_key are not a certificate/],
    [
      {
        auth_method: 'cert',
        cert_auth_cert: tls.cert,
        cert_auth_cert_key: other.key
      },
      /cert_auth_cert and cert_auth_cert_key are not a certificate and its key/
    ]
  ]
  for (const [material, message] of wrong) {
    const error = await (await open({ ...named, ssl_ca: tls.cert, ...material }))
      .fetch('app')
      .catch(error => error)
    t.match(error, { code: 'POSTERN_VAULT_SETTINGS', message })
    t.notMatch(error.message, /canary/)
  }
})

await t.test('http and https mistaken for each other', async t => {
  const tls = await certificateFor('127.0.0.1')
  await using plain = await withSecret()
  await using secure = await withSecret({ tls })
  const { open } = opener(t)
  const asSecure = await open({ port: plain.port, protocol: 'https', token: 'root' })
  await t.rejects(asSecure.fetch('app'), { message: /does not speak TLS/ })
  const asPlain = await open({ port: secure.port, token: 'root' })
  await t.rejects(asPlain.fetch('app'), { code: 'POSTERN_VAULT_UNREACHABLE' })
})

await t.test('mutual TLS, with a certificate that is renewed on disk', async t => {
  const tls = await certificateFor('127.0.0.1')
  const client = await certificateFor('gateway')
  const next = await certificateFor('gateway-next')
  await using vault = await withSecret({
    tls: { ...tls, clients: `${client.cert}\n${next.cert}`, requireClient: true }
  })
  const { file } = await folder(t)
  const { settings } = await appRole(vault, { token_num_uses: 2 })
  const trusted = { ...settings, protocol: 'https', ssl_ca: tls.cert }
  const { open } = opener(t)
  await t.rejects((await open(trusted)).fetch('app'), { code: 'POSTERN_VAULT_UNREACHABLE' })
  const byText = await open({ ...trusted, ssl_cert: client.cert, ssl_cert_key: client.key })
  t.ok(await byText.fetch('app'))
  const ssl_cert = await file('tls.crt', client.cert)
  const ssl_cert_key = await file('tls.key', client.key)
  const byFile = await open({ ...trusted, ssl_cert, ssl_cert_key })
  t.ok(await byFile.fetch('app'))
  const before = vault.certificates.at(-1)
  await file('tls.crt', next.cert)
  await file('tls.key', next.key)
  // The token of two uses makes for a login, at which the files are read again.
  await until(async () => {
    t.ok(await byFile.fetch('app'))
    return vault.certificates.at(-1) !== before
  }, 'the renewed certificate is used')
})

/** A forward proxy that records what it was asked for. */
async function startProxy() {
  const asked: string[] = []
  const proxy = http.createServer((request, response) => {
    asked.push(`${request.method} ${request.url}`)
    const { hostname, port, pathname } = new URL(request.url!)
    const { method, headers } = request
    const onward = http.request(
      { host: hostname, port, path: pathname, method, headers },
      answer => {
        response.writeHead(answer.statusCode!, answer.headers)
        answer.pipe(response)
      }
    )
    request.pipe(onward)
  })
  proxy.on('connect', (request, socket, head) => {
    asked.push(`CONNECT ${request.url}`)
    const [host, port] = request.url!.split(':')
    const onward = net.connect(Number(port), host, () => {
      socket.write('HTTP/1.1 200 OK\r\n\r\n')
      onward.write(head)
      onward.pipe(socket).pipe(onward)
    })
    onward.on('error', () => socket.destroy())
    socket.on('error', () => onward.destroy())
  })
  proxy.listen(0, '127.0.0.1')
  await once(proxy, 'listening')
  return {
    asked,
    url: `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`,
    async [Symbol.asyncDispose]() {
      proxy.closeAllConnections()
      proxy.close()
    }
  }
}

await t.test('the proxy that the environment names, and hosts it leaves out', async t => {
  const tls = await certificateFor('127.0.0.1')
  await using plain = await withSecret()
  await using secure = await withSecret({ tls })
  await using proxy = await startProxy()
  const env = { HTTP_PROXY: proxy.url, https_proxy: proxy.url }
  const settings = { token: 'root', kv: 'v2' }
  const overTls = { ...settings, port: secure.port, protocol: 'https', ssl_ca: tls.cert }
  const proxied = opener(t, env)
  t.ok(await (await proxied.open({ ...settings, port: plain.port })).fetch('app'))
  t.match(proxy.asked, [/^GET http:.*lookup-self$/, /^GET http:.*secret\/data\/app$/])
  t.ok(await (await proxied.open(overTls)).fetch('app'))
  t.ok(proxy.asked.includes(`CONNECT 127.0.0.1:${secure.port}`))
  proxy.asked.length = 0
  const direct = opener(t, { ...env, NO_PROXY: '127.0.0.1' })
  t.ok(await (await direct.open({ ...settings, port: plain.port })).fetch('app'))
  t.ok(await (await direct.open(overTls)).fetch('app'))
  t.strictSame(proxy.asked, [])
})

await t.test('so are those who vouch for the gateway at a login', async t => {
  await using proxy = await startProxy()
  await using third = await startUpstream((_, response) => {
    response.writeHead(403, { 'content-type': 'application/json' }).end('{"error":"canary"}')
  })
  const identity = {
    type: 'external_account',
    audience: '//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p',
    subject_token_type: 'urn:ietf:params:oauth:token-type:jwt',
    token_url: `${third.url}/google`,
    credential_source: { url: `${third.url}/subject` }
  }
  const { open } = opener(t, {
    HTTP_PROXY: proxy.url,
    GCP_SERVICE_ACCOUNT: JSON.stringify(identity)
  })
  const methods: readonly (readonly [string, Readonly<Record<string, unknown>>])[] = [
    [
      `GET ${third.url}/subject`,
      {
        auth_method: 'gcp_iam',
        gcp_auth_role: 'gateway',
        gcp_service_account: 'gateway@project.iam.gserviceaccount.com',
        gcp_jwt_exp: 600
      }
    ],
    [
      `POST ${third.url}/sts`,
      {
        auth_method: 'aws_iam',
        aws_auth_role: 'gateway',
        aws_auth_region: 'eu-central-1',
        aws_access_key_id: 'canary',
        aws_secret_access_key: 'canary',
        aws_assume_role_arn: 'arn:aws:iam::1:role/vault',
        aws_sts_endpoint_url: `${third.url}/sts`
      }
    ],
    [
      `POST ${third.url}/idp`,
      {
        auth_method: 'jwt',
        jwt_role: 'gateway',
        oauth2_token_endpoint: `${third.url}/idp`,
        oauth2_client_id: 'canary',
        oauth2_client_secret: 'canary'
      }
    ]
  ]
  for (const [asked, settings] of methods) {
    const error = await (await open(settings)).fetch('app').catch(error => error)
    t.match(error, { code: /^POSTERN_VAULT_/ }, asked)
    t.notMatch(error.message, /canary/)
    t.ok(
      proxy.asked.some(each => each.startsWith(asked)),
      asked
    )
  }
})
