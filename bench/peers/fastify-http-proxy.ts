import { readFileSync } from 'node:fs'
import proxy from '@fastify/http-proxy'
import { fastify } from 'fastify'

// @fastify/http-proxy as its README shows it, nothing tuned.
const [port, upstream, cert, key] = process.argv.slice(2)
const tls = cert === undefined ? null : { cert: readFileSync(cert), key: readFileSync(key!) }
const app = fastify({ logger: false, https: tls })
await app.register(proxy, { upstream: upstream! })
await app.listen({ host: '127.0.0.1', port: Number(port) })
