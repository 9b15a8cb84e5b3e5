# syntax=docker/dockerfile:1

FROM node:24-slim AS build
WORKDIR /opt/postern
COPY package.json package-lock.json ./
# No dependency needs an install script, so none may run.
RUN npm ci --ignore-scripts
COPY scripts scripts
COPY src src
RUN node scripts/bundle.ts && npm prune --omit=dev --ignore-scripts

FROM node:24-slim
LABEL org.opencontainers.image.title="Postern" \
      org.opencontainers.image.description="An HTTP gateway whose configuration holds no secret" \
      org.opencontainers.image.licenses="Apache-2.0"
# exec makes node the process that gets the signals.
RUN printf '#!/bin/sh\nexec node --disable-sigusr1 /opt/postern/dist/cli.js "$@"\n' > /usr/local/bin/postern \
 && chmod 755 /usr/local/bin/postern \
 && rm -rf /usr/local/lib/node_modules /usr/local/bin/npm /usr/local/bin/npx /usr/local/bin/corepack /opt/yarn* /usr/local/bin/yarn* \
 && mkdir /etc/postern
COPY package.json LICENSE /opt/postern/
COPY --from=build /opt/postern/node_modules /opt/postern/node_modules
COPY --from=build /opt/postern/dist /opt/postern/dist

ENV NODE_ENV=production \
    POSTERN_CONFIG=/etc/postern/postern.yaml
WORKDIR /etc/postern
# By number, so that Kubernetes can tell it is not root. Nothing is written at run time.
USER 1000:1000
EXPOSE 8000 8443
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --start-interval=1s --retries=3 \
    CMD ["postern", "healthcheck"]
ENTRYPOINT ["postern"]
CMD ["start"]
