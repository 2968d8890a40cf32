{{- /* The release's name; the chart's within it where that says nothing of Dormouse. At most 40 characters: names are derived from it. */ -}}
{{- define "dormouse.fullname" -}}
{{- ternary .Release.Name (printf "%s-dormouse" .Release.Name) (contains "dormouse" .Release.Name) | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- /* How many of a part: what its values say; else one on a single node, and else what a cluster should have. Values that an older release did
not have are absent with --reuse-values. */ -}}
{{- /* Members of etcd: an upgrade that says nothing of them leaves as many as there are. It would be hard to go back: a rollback that takes
two of three away takes their majority. */ -}}
{{- define "dormouse.etcdReplicas" -}}
{{- $before := lookup "apps/v1" "StatefulSet" .Release.Namespace (printf "%s-etcd" (include "dormouse.fullname" .)) | default dict -}}
{{- $found := int (dig "spec" "replicas" 0 $before) -}}
{{- .Values.etcd.replicas | default (ternary 1 ($found | default 3) (.Values.singleNode | default false)) -}}
{{- end -}}

{{- define "dormouse.replicas" -}}
{{- .part.replicas | default (ternary 1 2 (.root.Values.singleNode | default false)) -}}
{{- end -}}

{{- /* Labels of a part. Called with (dict "root" $ "part" "gateway"). */ -}}
{{- define "dormouse.selector" -}}
app.kubernetes.io/name: dormouse
app.kubernetes.io/instance: {{ .root.Release.Name }}
dormouse.dev/part: {{ .part }}
{{- end -}}

{{- define "dormouse.labels" -}}
{{ include "dormouse.selector" . }}
app.kubernetes.io/component: {{ .part }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "dormouse.image" -}}
{{ include "dormouse.reference" (dict "image" .Values.image "tag" (.Values.image.tag | default .Chart.AppVersion)) }}
{{- end -}}

{{- /* With a digest the tag is for people: the runtime pulls what has the digest, whatever the tag says by now. */ -}}
{{- define "dormouse.reference" -}}
{{ .image.repository }}:{{ .tag }}{{ with .image.digest }}@{{ . }}{{ end }}
{{- end -}}

{{- /* An id that is null is the platform's to choose: OpenShift gives each namespace a range of its own, and refuses others. What a pod writes
to is its fsGroup's, or everybody's in the pod, so any will do. */ -}}
{{- define "dormouse.ids" -}}
{{- $given := .Values.podSecurity | default (dict "runAsUser" 65532 "runAsGroup" 65532 "fsGroup" 65532) -}}
{{- $ids := dict -}}
{{- range $name, $id := $given -}}
{{- if not (kindIs "invalid" $id) }}{{ $_ := set $ids $name (int64 $id) }}{{ end -}}
{{- end -}}
{{- toJson $ids -}}
{{- end -}}

{{- define "dormouse.podSecurity" -}}
runAsNonRoot: true
{{- range $name, $id := include "dormouse.ids" . | fromJson }}
{{ $name }}: {{ int64 $id }}
{{- end }}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "dormouse.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- /* Where a part may run. Called with the part's values. */ -}}
{{- define "dormouse.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with .tolerations }}
tolerations: {{ toJson . }}
{{- end }}
{{- with .affinity }}
affinity: {{ toJson . }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{- /* etcd's members as clients reach them, a Service each: its address stays when the pod's changes. */ -}}
{{- define "dormouse.etcdEndpoints" -}}
{{- if .Values.etcd.enabled -}}
{{- range $i := until (include "dormouse.etcdReplicas" . | int) }}{{ if $i }},{{ end }}{{ include "dormouse.fullname" $ }}-etcd-{{ $i }}.{{ $.Release.Namespace }}.svc.{{ $.Values.clusterDomain }}:2379{{ end -}}
{{- else -}}
{{- join "," .Values.etcd.external.endpoints -}}
{{- end -}}
{{- end -}}

{{- /* Secrets of the chart's etcd have one of three makers: the operator, somebody who is named by existingSecret, or, of an etcd elsewhere,
its owner. No template makes one: Argo CD renders without a cluster, and would make others at every sync. */ -}}
{{- define "dormouse.tlsSecret" -}}
{{- if .Values.etcd.enabled }}{{ (.Values.etcd.certificates | default dict).existingSecret | default (printf "%s-etcd-tls" (include "dormouse.fullname" .)) }}{{ else }}{{ .Values.etcd.external.tlsSecret }}{{ end -}}
{{- end -}}

{{- define "dormouse.usersSecret" -}}
{{- if .Values.etcd.enabled }}{{ (.Values.etcd.users | default dict).existingSecret | default (printf "%s-etcd-passwords" (include "dormouse.fullname" .)) }}{{ else }}{{ .Values.etcd.external.usersSecret }}{{ end -}}
{{- end -}}

{{- /* Whether etcd asks for a client certificate: the chart's own never does. */ -}}
{{- define "dormouse.clientCertificate" -}}
{{- if and (not .Values.etcd.enabled) .Values.etcd.external.tlsSecret .Values.etcd.external.clientCertificate }}yes{{ end -}}
{{- end -}}

{{- /* How a part reaches etcd. Called with (dict "root" $ "user" "gateway" "name" "gateway"): user as etcd has it, name as the Secret. */ -}}
{{- define "dormouse.storeArguments" -}}
{{- range splitList "," (include "dormouse.etcdEndpoints" .root) }}
- --store={{ . }}
{{- end }}
{{- if include "dormouse.tlsSecret" .root }}
- --store-ca=/etc/dormouse/tls/ca.crt
{{- if include "dormouse.clientCertificate" .root }}
- --store-cert=/etc/dormouse/tls/tls.crt
- --store-key=/etc/dormouse/tls/tls.key
{{- end }}
{{- end }}
{{- if include "dormouse.usersSecret" .root }}
- --store-user={{ .user }}
- --store-password-file=/etc/dormouse/users/{{ .name }}
{{- end }}
- --installation={{ .root.Values.installation }}
{{- end -}}

{{- define "dormouse.storeMounts" -}}
{{- if include "dormouse.tlsSecret" .root }}
- {name: tls, mountPath: /etc/dormouse/tls, readOnly: true}
{{- end }}
{{- if include "dormouse.usersSecret" .root }}
- {name: users, mountPath: /etc/dormouse/users, readOnly: true}
{{- end }}
{{- end -}}

{{- /* `names`: the users whose passwords this part may see. */ -}}
{{- define "dormouse.storeVolumes" -}}
{{- with include "dormouse.tlsSecret" .root }}
{{- if $.root.Values.etcd.enabled }}
- {name: tls, secret: {secretName: {{ . }}, defaultMode: 0440, items: [{key: ca.crt, path: ca.crt}]}}
{{- else }}
- {name: tls, secret: {secretName: {{ . }}, defaultMode: 0440}}
{{- end }}
{{- end }}
{{- with include "dormouse.usersSecret" .root }}
- name: users
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    items:
      {{- range $.names }}
      - {key: {{ . }}, path: {{ . }}}
      {{- end }}
{{- end }}
{{- end -}}

{{- /* Pods of a part of this release, in a NetworkPolicy. */ -}}
{{- define "dormouse.peer" -}}
podSelector:
  matchLabels: {{- include "dormouse.selector" . | nindent 4 }}
{{- end -}}

{{- /* Not empty where steps may call functions. A release of before the value has none with --reuse-values. */ -}}
{{- define "dormouse.calls" -}}
{{- if ne (toString .Values.gateway.calls) "false" }}true{{ end }}
{{- end -}}

{{- /* Agent and Envoy take the same options, so that both agree on ports and limits. */ -}}
{{- define "dormouse.gatewayArguments" -}}
{{- $host := printf "%s-gateway.%s" (include "dormouse.fullname" .) .Release.Namespace -}}
{{- include "dormouse.storeArguments" (dict "root" . "user" (printf "dormouse-gateway/%s" .Values.installation) "name" "gateway") }}
- --name=$(POD_NAME)
- --node=$(NODE_NAME)
- --listen=0.0.0.0:8001
- --listen-relay=127.0.0.1:8002
{{- if include "dormouse.calls" . }}
- --listen-calls=0.0.0.0:8003
{{- end }}
- --pods
- --xds=unix:/run/dormouse/xds.sock
- --admin=/run/dormouse/envoy.sock
- --metrics=9090
- --metrics-host=0.0.0.0
- --default-namespace={{ .Values.gateway.defaultNamespace }}
{{- range concat (list $host (printf "%s.svc" $host) (printf "%s.svc.%s" $host .Values.clusterDomain) "localhost" "127.0.0.1") .Values.gateway.ownNames }}
- --own-name={{ . }}
{{- end }}
- --max-message-bytes={{ int64 .Values.gateway.maxMessageBytes }}
- --max-held={{ int64 .Values.gateway.maxHeld }}
- --max-held-bytes={{ int64 .Values.gateway.maxHeldBytes }}
{{- with .Values.gateway.maxStreams }}
- --max-streams={{ int64 . }}
{{- end }}
- --concurrency={{ .Values.gateway.concurrency }}
- --drain-seconds={{ .Values.gateway.drainSeconds }}
- --min-drain-seconds={{ .Values.gateway.minDrainSeconds }}
{{- end -}}

{{- define "dormouse.gatewayEnvironment" -}}
- {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
- {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
- {name: TMPDIR, value: /run/dormouse}
{{- end -}}

{{- /* Not empty where namespaces are served by their labels. */}}
{{- define "dormouse.selects" -}}
{{- with .Values.namespaceSelector }}{{ if or .matchLabels .matchExpressions }}true{{ end }}{{ end }}
{{- end }}
