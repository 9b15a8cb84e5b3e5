import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { directory, file, has, keyPair, nginxConfig, portOf, root, UPSTREAM_PORT } from '../lab.ts'

/** One proxy to measure. */
export interface Peer {
  readonly name: string
  readonly port: number
  readonly tlsPort: number | undefined
  readonly command: readonly string[]
  readonly env?: Readonly<Record<string, string>>
  /** Why it is left out; undefined when it can be measured. */
  readonly missing?: string
}

const UPSTREAM = `http://127.0.0.1:${UPSTREAM_PORT}`
export const COLLECTOR_PORT = portOf(110)
const node = process.execPath

/** How the gateway is started: its bundle. */
export function postern(
  name: string,
  port: number,
  config: string,
  env: Readonly<Record<string, string>> = {}
): Peer {
  const path = file(`${name.replaceAll(/\W+/g, '-')}.yaml`, config)
  return {
    name,
    port,
    tlsPort: port + 50,
    command: [node, '--disable-sigusr1', join(root, 'dist/cli.js'), 'start', '-c', path],
    env: {
      POSTERN_PROXY_LISTEN: `127.0.0.1:${port}, 127.0.0.1:${port + 50} ssl`,
      POSTERN_STATUS_LISTEN: `127.0.0.1:${port + 500}`,
      POSTERN_WORKERS: '1',
      POSTERN_LOG_LEVEL: 'error',
      ...env
    }
  }
}

const BARE = `_format_version: "3.0"
services: [{ name: bench, url: "${UPSTREAM}", routes: [{ name: all, paths: [/] }] }]
`
const FOUR_PLUGINS = `_format_version: "3.0"
services: [{ name: bench, url: "${UPSTREAM}", routes: [{ name: all, paths: [/] }] }]
consumers: [{ username: bench, keyauth_credentials: [{ key: bench-key-0 }] }]
plugins:
  - { name: key-auth }
  - { name: rate-limiting, config: { policy: local, minute: 1000000000 } }
  - { name: session, config: { secret: a-secret-of-the-benchmark, storage: cookie } }
  - name: http-log
    config: { http_endpoint: "http://127.0.0.1:${COLLECTOR_PORT}/", queue: { max_batch_size: 1000, max_coalescing_delay: 1 } }
`

/** Every peer, those that are not installed with the reason. */
export function peers(): readonly Peer[] {
  if (!existsSync(join(root, 'dist/cli.js'))) throw new Error('run npm run build first')
  const { cert, key, both } = keyPair()
  const script = (name: string, port: number, tls = true): Peer => ({
    name,
    port,
    tlsPort: tls ? port + 50 : undefined,
    command: [
      node,
      join(import.meta.dirname, `${name.replace('@', '').replace('/', '-')}.ts`),
      String(port),
      UPSTREAM
    ]
  })
  const caddyfile = file(
    'Caddyfile',
    `{
	admin off
	auto_https off
	storage file_system ${directory}/caddy
}
http://127.0.0.1:${portOf(205)} {
	reverse_proxy 127.0.0.1:${UPSTREAM_PORT}
}
https://127.0.0.1:${portOf(255)} {
	tls ${cert} ${key}
	reverse_proxy 127.0.0.1:${UPSTREAM_PORT}
}
`
  )
  const haproxy = file(
    'haproxy.cfg',
    `global
  nbthread 1
  maxconn 4000
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  http-reuse always
frontend f
  bind 127.0.0.1:${portOf(206)}
  bind 127.0.0.1:${portOf(256)} ssl crt ${both}
  default_backend b
backend b
  server s 127.0.0.1:${UPSTREAM_PORT}
`
  )
  const nginx = nginxConfig(
    'nginx-peer',
    `upstream u { server 127.0.0.1:${UPSTREAM_PORT}; keepalive 512; keepalive_requests 100000000; }
server { listen 127.0.0.1:${portOf(207)}; listen 127.0.0.1:${portOf(257)} ssl; ssl_certificate ${cert}; ssl_certificate_key ${key};
location / { proxy_pass http://u; proxy_http_version 1.1; proxy_set_header Connection ""; } }`
  )
  const installed = (command: string, peer: Peer): Peer =>
    has(command) ? peer : { ...peer, missing: `${command} is not installed` }
  return [
    postern('postern', portOf(201), BARE),
    postern('postern, 4 plugins', portOf(202), FOUR_PLUGINS),
    script('@fastify/http-proxy', portOf(203)),
    script('http-proxy-3', portOf(204)),
    script('fast-proxy', portOf(208), false),
    installed('caddy', {
      name: 'Caddy',
      port: portOf(205),
      tlsPort: portOf(255),
      command: ['caddy', 'run', '--adapter', 'caddyfile', '--config', caddyfile],
      env: { GOMAXPROCS: '1', HOME: directory }
    }),
    installed('haproxy', {
      name: 'HAProxy',
      port: portOf(206),
      tlsPort: portOf(256),
      command: ['haproxy', '-f', haproxy, '-db']
    }),
    { name: 'nginx', port: portOf(207), tlsPort: portOf(257), command: nginx }
  ]
}

/** The same peer as it is started for TLS. */
export function withTls(peer: Peer): Peer {
  if (!peer.command[1]?.endsWith('.ts')) return peer
  const { cert, key } = keyPair()
  const command = [...peer.command]
  command[2] = String(peer.tlsPort)
  return { ...peer, command: [...command, cert, key] }
}
